"""The table of rules, and what a rule can say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from pyro_perm.discovery.permutations import algebra, digits
from pyro_perm.discovery.permutations.expressions import (
    AxisExpr,
    Reason,
    axis_of_size,
    rearranged,
    resolve,
    size_of,
)
from pyro_perm.discovery.recording.graph import OVERLAY, Call
from pyro_perm.program._torch_internals import is_operator


@dataclass(frozen=True, eq=False)
class AxisTensor:
    """A tensor as a rule sees it.

    Attributes:
        axes: what may be permuted along each dimension.
        is_mask: whether the tensor's entries are booleans.
        content: the tensor's value where it is a constant that the model made, with dimensions
            along which it was expanded cut to one entry.
    """

    axes: tuple[AxisExpr, ...]
    is_mask: bool = False
    content: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(size_of(axis) for axis in self.axes)

    def __getitem__(self, dim: int) -> AxisExpr:
        return self.axes[dim]

    def __len__(self) -> int:
        return len(self.axes)

    def __iter__(self) -> Iterator[AxisExpr]:
        return iter(self.axes)


@dataclass(frozen=True)
class AxisRules:
    """What a rule can demand of axes, while it describes one operation.

    Attributes:
        operation: the operation's name and overload, for reasons.
        source: the model's source line.
        result_shapes: the shapes of the operation's results.
        is_used: for each result, whether the log joint depends on it.
        names: constant arguments that the rule took as names of coordinates, not as numbers.
    """

    operation: str
    source: str | None
    result_shapes: tuple[tuple[int, ...], ...]
    is_used: tuple[bool, ...]
    names: list[AxisTensor] = field(default_factory=list)

    def tie(self, x: AxisExpr, y: AxisExpr) -> AxisExpr:
        """Permute two axes of equal length alike, as adding their tensors does."""
        algebra.tie(x, y, self._why(f"combined by {self.operation}"))
        return x

    def freeze(self, axes: AxisExpr | Iterable[AxisExpr], cause: str | None = None) -> None:
        """Permute nothing along some axes.

        :param cause: to be read after "is fixed:"; by default that the order matters here.
        """
        why = self._why(cause or f"order-dependent {self.operation}")
        for axis in [axes] if isinstance(axes, AxisExpr) else axes:
            algebra.freeze(axis, why)

    def free(self, size: int) -> AxisExpr:
        """A new axis along which all entries of a tensor are equal."""
        return axis_of_size(size)

    def fixed(self, size: int, cause: str | None = None) -> AxisExpr:
        """A new axis along which nothing is permuted."""
        return axis_of_size(size, self._why(cause or f"order-dependent {self.operation}"))

    def segments(
        self, axis: AxisExpr, sizes: Sequence[int], cause: str | None = None
    ) -> list[AxisExpr]:
        """Cut an axis into consecutive segments.

        :param cause: why a unit that is cut off is fixed, to be read after "is fixed:".
        """
        cut, why = [], self._why(cause or f"cut by {self.operation}")
        for size in sizes:
            first, axis = algebra.split_sum(axis, size, why)
            cut.append(first)
        return cut

    def factors(self, axis: AxisExpr, sizes: Sequence[int]) -> list[AxisExpr]:
        """Unflatten an axis, row-major; freezes it where its layout does not allow that."""
        return algebra.factor(axis, sizes, self._why(f"reshaped by {self.operation}"))

    def unflatten(self, axis: AxisExpr, sizes: Sequence[int]) -> list[AxisExpr]:
        """Unflatten an axis as :meth:`factors` does, but not before a factor is asked for.

        Only rules with ``moves_entries`` see such factors.
        """
        return digits.unflatten(axis, sizes, self._why(f"reshaped by {self.operation}"))

    def flatten(self, axes: Sequence[AxisExpr]) -> AxisExpr:
        """Flatten axes, row-major; what was unflattened and moved since is an axis in disorder."""
        return digits.flatten(axes)

    def stack(self, rows: Sequence[AxisExpr]) -> list[AxisExpr]:
        """Axes of tensors side by side: which tensor it is, and one that is theirs.

        They are not permuted alike before either is asked for, as those of :meth:`unflatten`.
        """
        joined, tied = (self._why(f"{verb} by {self.operation}") for verb in ("joined", "combined"))
        return digits.Stack(rows, joined, tied).axes()

    def rearranged(self, axis: AxisExpr, places: Sequence[int]) -> AxisExpr:
        """The axis of the same coordinates in another order.

        :param places: for each coordinate of the result, which one of the axis it is.
        """
        return rearranged(resolve(axis), places)

    def has_factor(self, axis: AxisExpr, right: int) -> bool:
        """Whether an axis can be unflattened to rows of some length without freezing it."""
        return algebra.has_factor(axis, right)

    def _why(self, text: str) -> Reason:
        return Reason(text, self.source)


Axes = list[AxisExpr]


class AxisRule(Protocol):
    """Describes one operation.

    Gets the values of the operation's arguments in the order of its schema, defaults included,
    with an :class:`AxisTensor` in place of each tensor, and returns the axes of its result: a list
    for a tensor, a tuple of lists for several.
    """

    def __call__(self, rules: AxisRules, *arguments: Any) -> Axes | tuple[Axes, ...]:
        """Constrain the axes of the arguments and return those of the result."""


_TABLE: dict[str, AxisRule] = {}
_MOVES_ENTRIES: set[AxisRule] = set()


Rule = TypeVar("Rule", bound=AxisRule)


def register_axis_rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Tell :func:`find_symmetry` how an operation treats the axes of its arguments.

    Usage:

    >>> import torch
    >>> import pyro_perm as pp
    >>> @torch.library.custom_op("mylib::scale_rows", mutates_args=())
    ... def scale_rows(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    ...     return x * scale.unsqueeze(-1)
    >>> @pp.register_axis_rule(torch.ops.mylib.scale_rows)
    ... def rule(rules, x, scale):
    ...     rules.tie(x[0], scale[0])
    ...     return list(x)

    The rule must tie or freeze enough axes that permuting the arguments along them permutes the
    result along the axes that it returns. A rule serves the operation's in-place variant too.

    :param operations: operators of ``torch.ops`` (all overloads), or single overloads of them.
    :raises TypeError: for anything else.
    """
    names = [_name_of(operation) for operation in operations]

    def register(rule: Rule) -> Rule:
        for name in names:
            _TABLE[name] = rule
        return rule

    return register


def moves_entries(rule: Rule) -> Rule:
    """Mark the rule of an operation that moves all entries, or does the same to each of them.

    It may leave axes that were unflattened alone, whether or not they have become products.
    """
    _MOVES_ENTRIES.add(rule)
    return rule


def needs_products(rule: AxisRule) -> bool:
    """Whether all of a rule's axes must be known to be permuted each by itself."""
    return rule not in _MOVES_ENTRIES


def rule_for(call: Call) -> AxisRule | None:
    """The rule that describes a call, if there is one."""
    name = call.name.replace("::", ".")
    return _TABLE.get(f"{name}.{call.overload or 'default'}") or _TABLE.get(name)


def _name_of(operation: Any) -> str:
    if operation == OVERLAY or is_operator(operation):
        return str(operation).replace("::", ".")
    raise TypeError(
        f"register_axis_rule takes operators such as torch.ops.aten.mm, but got {operation!r}"
    )
