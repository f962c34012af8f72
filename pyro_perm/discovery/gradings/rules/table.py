"""The two gradings, the tables of their rules, and what a rule can demand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.degrees import ANY, INVARIANT, DegreeTable
from pyro_perm.discovery.gradings.linear_equations import Equations, Field
from pyro_perm.discovery.permutations.expressions import Reason
from pyro_perm.discovery.recording.graph import Call
from pyro_perm.program._torch_internals import writes

# Gets the arguments of the operation, degrees in place of tensors; returns those of the results.
GradingRule = Callable[..., "Tensor | Sequence[Tensor]"]

Rule = TypeVar("Rule", bound=GradingRule)


@dataclasses.dataclass(frozen=True, eq=False)
class Grading:
    """A way to act on units: what they may be multiplied by, and what is known of operations.

    Attributes:
        field: where degrees lie.
        unlike: what a sum does to terms of unlike degrees, for reasons.
        unknown: what an operation without a rule is taken to be, for reasons.
        leaves_infinity: whether infinity is left alone, as zero is.
    """

    field: Field
    unlike: str
    unknown: str
    leaves_infinity: bool
    _table: dict[str, GradingRule] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def rule_for(self, call: Call) -> GradingRule | None:
        """The rule for a call, if there is one."""
        return self._table.get(f"{call.name.replace('::', '.')}.{call.overload or 'default'}")

    def degree_of(self, number: float) -> int:
        """The degree of a number that the model contains."""
        is_left_alone = number == 0 or (self.leaves_infinity and abs(number) == float("inf"))
        return ANY if is_left_alone else INVARIANT

    def degrees_of(self, constant: Tensor) -> Tensor:
        """The degrees of a constant's entries."""
        is_left_alone = constant == 0
        if self.leaves_infinity and constant.is_floating_point():
            is_left_alone |= constant.isinf()
        return torch.where(is_left_alone, ANY, INVARIANT)


SIGNS = Grading(
    Field(2),
    unlike="mixes what flips with what does not",
    unknown="is neither odd nor even",
    leaves_infinity=False,
)
SCALES = Grading(
    Field(0),
    unlike="mixes what scales differently",
    unknown="is not homogeneous",
    leaves_infinity=True,
)


@dataclasses.dataclass(frozen=True)
class GradingRules:
    """What a rule can demand of degrees, while it describes one operation.

    Attributes:
        grading: which action the degrees belong to.
        degrees: numbers the linear forms.
        equations: collects the demands.
        operation: the operation's name, for reasons.
        source: the model's source line.
        result_shapes: the shapes of the operation's results.
    """

    grading: Grading
    degrees: DegreeTable
    equations: Equations
    operation: str
    source: str | None
    result_shapes: tuple[tuple[int, ...], ...]

    def refuse(self, degrees: Tensor, cause: str | None = None) -> None:
        """Demand that the action leaves entries alone.

        :param cause: to be read after the operation's name; by default that it has no rule.
        """
        self._require_equal(degrees, torch.zeros_like(degrees), cause or self.grading.unknown)

    def common(self, degrees: Tensor, dims: int | Iterable[int]) -> Tensor:
        """Demand one degree of all entries along some dimensions, as summing them does.

        :returns: that degree, the dimensions kept with length one.
        """
        for dim in [dims] if isinstance(dims, int) else dims:
            if not degrees.dim():
                break
            first = degrees.narrow(dim, 0, min(1, degrees.shape[dim]))
            if bool((first == ANY).any()):
                known = (degrees != ANY).to(torch.int8)
                first = degrees.gather(dim, known.argmax(dim, keepdim=True))
            self._require_equal(degrees, first.expand(degrees.shape), self.grading.unlike)
            degrees = first
        return degrees

    def together(self, *degrees: Tensor) -> Tensor:
        """Demand one degree wherever the entries of several tensors meet."""
        return self.common(torch.stack(torch.broadcast_tensors(*degrees)), 0).squeeze(0)

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """The degrees of a product, entry by entry."""
        return self.degrees.sum(x, y)

    def power(self, degrees: Tensor, exponent: Fraction | int) -> Tensor:
        """The degrees of powers."""
        return self.degrees.multiple(degrees, Fraction(exponent))

    def invariant(self, result: int = 0) -> Tensor:
        """The degrees of a result that the action leaves alone."""
        return torch.full(self.result_shapes[result], INVARIANT, device="cpu")

    def of(self, argument: Tensor | float) -> Tensor:
        """The degrees of an argument that may be a number."""
        if isinstance(argument, Tensor):
            return argument
        return torch.tensor(self.grading.degree_of(argument), device="cpu")

    def _require_equal(self, x: Tensor, y: Tensor, cause: str) -> None:
        why = Reason(f"{self.operation} {cause}", self.source)
        differ = (x != y) & (x != ANY) & (y != ANY)
        if not bool(differ.any()):
            return
        for first, second in torch.stack([x[differ], y[differ]]).unique(dim=1).T.tolist():
            self.equations.add(self.degrees.difference(first, second), why)


def grading_rule(
    *operations: Any, gradings: Sequence[Grading] = (SIGNS, SCALES)
) -> Callable[[Rule], Rule]:
    """Register a rule for some overloads of operators; for an operator, that is the default one.

    A rule gets :class:`GradingRules`, and the operation's arguments in the order of its schema,
    with the degrees of the entries in place of each tensor; it returns the degrees of the result,
    or of each of several. It serves the operation's in-place variant too.

    :param operations: operators of ``torch.ops``, overloads of them, or names of recorded calls.
    :param gradings: the actions that it is about: ``SIGNS``, ``SCALES``, or both.
    :returns: a decorator, which leaves the rule as it is.
    """

    def register(rule: Rule) -> Rule:
        for operation in operations:
            for grading in gradings:
                grading._table[_name_of(operation)] = rule
        return rule

    return register


def _name_of(operation: Any) -> str:
    if isinstance(operation, str):
        return f"{operation}.default".replace("::", ".")
    overload = getattr(operation, "default", operation)  # of an operator, or an overload itself
    name, _, rest = overload.name().replace("::", ".").partition(".")[2].partition(".")
    return f"aten.{name.rstrip('_') if writes(overload) else name}.{rest or 'default'}"
