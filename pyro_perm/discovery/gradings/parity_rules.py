"""How operations treat the signs of their arguments.

An operation without a rule is taken to be neither odd nor even. Operations that only move entries
are carried out on the parities themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.parity import INVARIANT, ZERO, ParityRules, product
from pyro_perm.discovery.recording.graph import Call

aten = torch.ops.aten

# Gets the arguments of the operation, parities in place of tensors; returns those of the results.
ParityRule = Callable[..., "Tensor | Sequence[Tensor]"]

Rule = TypeVar("Rule", bound=ParityRule)

_TABLE: dict[str, ParityRule] = {}


def parity_rule_for(call: Call) -> ParityRule | None:
    """The rule for a call, if there is one."""
    return _TABLE.get(f"{call.name.replace('::', '.')}.{call.overload or 'default'}")


def _rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Register a rule for some overloads of operators; for an operator, that is the default one."""

    def register(rule: Rule) -> Rule:
        for operation in operations:
            is_packet = isinstance(operation, torch._ops.OpOverloadPacket)
            overload = operation.default if is_packet else operation
            _TABLE[str(overload)] = rule
        return rule

    return register


@_rule(
    *(aten.neg, aten.tanh, aten.sin, aten.tan, aten.sinh, aten.asin, aten.asinh, aten.atan),
    *(aten.atanh, aten.erf, aten.erfinv, aten.sign, aten.sgn, aten.softshrink, aten.hardshrink),
    *(aten.clone, aten.detach, aten.alias, aten.lift_fresh, aten.lift_fresh_copy, aten._to_copy),
)
def odd(rules: ParityRules, x: Tensor, *rest: Any) -> Tensor:
    """``f(-x) = -f(x)``."""
    return x


@_rule(aten.abs, aten.square, aten.cos, aten.cosh)
def even(rules: ParityRules, x: Tensor) -> Tensor:
    """``f(-x) = f(x)``."""
    return torch.zeros_like(x)


@_rule(aten.reciprocal)
def reciprocal(rules: ParityRules, x: Tensor) -> Tensor:
    """``1 / x``, which is not zero where ``x`` is."""
    return torch.where(x == ZERO, INVARIANT, x)


@_rule(aten.pow.Tensor_Scalar)
def power(rules: ParityRules, x: Tensor, exponent: float) -> Tensor:
    """Odd or even, as the exponent is."""
    if exponent % 2 == 0:
        return torch.zeros_like(x)
    if exponent % 2 != 1:
        rules.refuse(x)
    return x if exponent > 0 else reciprocal(rules, x)


@_rule(aten.clamp.default, aten.hardtanh)
def clamp(rules: ParityRules, x: Tensor, low: float | None = -1, high: float | None = 1) -> Tensor:
    """Odd between limits that are symmetric about zero."""
    if low is None or high is None or low != -high:
        rules.refuse(x)
    return x


@_rule(aten.mul.Tensor, aten.mul.Scalar)
def multiply(rules: ParityRules, x: Tensor, y: Tensor | float) -> Tensor:
    """``x * y``."""
    return product(x, _parity(y, x))


@_rule(aten.div.Tensor, aten.div.Scalar)
def divide(rules: ParityRules, x: Tensor, y: Tensor | float) -> Tensor:
    """``x / y``."""
    return product(x, reciprocal(rules, _parity(y, x)))


@_rule(
    *(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar),
    *(aten.rsub.Tensor, aten.rsub.Scalar),
)
def add(rules: ParityRules, x: Tensor, y: Tensor | float, alpha: float = 1) -> Tensor:
    """``x + alpha y``."""
    return rules.together(x, _parity(y, x))


@_rule(aten.where.self)
def where(rules: ParityRules, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """One of two, as a third tells."""
    rules.refuse(condition)
    return rules.together(x, y).expand(rules.result_shapes[0])


@_rule(aten.masked_fill.Scalar)
def masked_fill(rules: ParityRules, x: Tensor, mask: Tensor, value: float) -> Tensor:
    """A number in some places."""
    return where(rules, mask, _parity(value, x), x)


@_rule(aten.sum.default, aten.mean.default)
def total(rules: ParityRules, x: Tensor, *rest: Any) -> Tensor:
    """The sum of all entries."""
    return rules.common(x, range(x.dim())).reshape(())


@_rule(aten.sum.dim_IntList, aten.mean.dim)
def sum_along(
    rules: ParityRules, x: Tensor, dims: list[int] | None, keepdim: bool = False, *rest: Any
) -> Tensor:
    """The sum along some dimensions."""
    gone = list(dims) if dims else list(range(x.dim()))
    summed = rules.common(x, gone)
    return summed if keepdim or not x.dim() else summed.squeeze(gone)


@_rule(aten.cumsum)
def running_sum(rules: ParityRules, x: Tensor, dim: int, *rest: Any) -> Tensor:
    """The sums of the first entries along a dimension."""
    return rules.common(x, dim).expand(x.shape)


@_rule(aten.linalg_vector_norm)
def norm(rules: ParityRules, x: Tensor, *rest: Any) -> Tensor:
    """A vector norm, which is even in every entry."""
    return torch.zeros(rules.result_shapes[0], dtype=torch.long)


@_rule(aten.var.correction, aten.std.correction)
def deviation(rules: ParityRules, x: Tensor, dims: list[int] | None, *rest: Any) -> Tensor:
    """Variance or standard deviation of entries that flip alike."""
    rules.common(x, dims or range(x.dim()))
    return torch.zeros(rules.result_shapes[0], dtype=torch.long)


@_rule(aten.native_batch_norm)
def batch_norm(
    rules: ParityRules,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Any,
    running_var: Any,
    training: bool,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Channels, all entries of which flip alike, standardized, scaled and shifted."""
    if not training:
        rules.refuse(x)
    channels = rules.common(x, [dim for dim in range(x.dim()) if dim != 1]).flatten()
    out = channels if weight is None else product(channels, weight)
    out = out if bias is None else rules.together(out, bias)
    result = out.reshape(-1, *(1,) * (x.dim() - 2)).expand(x.shape)
    return result, channels, torch.zeros_like(channels)


@_rule(aten.mm)
def matrix_product(rules: ParityRules, x: Tensor, y: Tensor) -> Tensor:
    """``(i, k) @ (k, j)``; equal rows and columns, which are most, are looked at once."""
    rows, row = x.unique(dim=0, return_inverse=True)
    columns, column = y.unique(dim=1, return_inverse=True)
    terms = product(rows.unsqueeze(-1), columns.unsqueeze(0))
    return rules.common(terms, 1).squeeze(1)[row][:, column]


@_rule(aten.bmm)
def batched_product(rules: ParityRules, x: Tensor, y: Tensor) -> Tensor:
    """``(b, i, k) @ (b, k, j)``."""
    if bool((x == x[:1]).all()) and bool((y == y[:1]).all()):
        return matrix_product(rules, x[0], y[0]).expand(len(x), -1, -1)
    return torch.stack([matrix_product(rules, *pair) for pair in zip(x, y, strict=True)])


@_rule(aten.mv)
def matrix_vector(rules: ParityRules, x: Tensor, y: Tensor) -> Tensor:
    """``(i, k) @ (k,)``."""
    return rules.common(product(x, y), 1).squeeze(1)


@_rule(aten.dot)
def inner_product(rules: ParityRules, x: Tensor, y: Tensor) -> Tensor:
    """``(k,) @ (k,)``."""
    return rules.common(product(x, y), 0).squeeze(0)


@_rule(aten.addmm)
def add_matrix_product(
    rules: ParityRules, bias: Tensor, x: Tensor, y: Tensor, *rest: Any
) -> Tensor:
    """``bias + x @ y``."""
    return rules.together(bias, matrix_product(rules, x, y))


@_rule(aten.baddbmm)
def add_batched_product(
    rules: ParityRules, bias: Tensor, x: Tensor, y: Tensor, *rest: Any
) -> Tensor:
    """``bias + x @ y``, in batches."""
    return rules.together(bias, batched_product(rules, x, y))


@_rule(aten.addmv)
def add_matrix_vector(rules: ParityRules, bias: Tensor, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
    """``bias + x @ y`` for a vector ``y``."""
    return rules.together(bias, matrix_vector(rules, x, y))


@_rule(aten.convolution)
def convolution(
    rules: ParityRules,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """A matrix product of channels, in which all places of a channel flip alike."""
    channels, kernel = (
        rules.common(tensor, range(2, tensor.dim())).flatten(1) for tensor in (x, weight)
    )
    pairs = zip(channels.chunk(groups, 1), kernel.chunk(groups, 0), strict=True)
    out = [matrix_product(rules, c, k if transposed else k.T) for c, k in pairs]
    result = torch.cat(out, 1)
    if bias is not None:
        result = rules.together(result, bias)
    shape = rules.result_shapes[0]
    return result.reshape(*result.shape, *(1,) * (len(shape) - 2)).expand(shape)


@_rule(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
def average_pool(rules: ParityRules, x: Tensor, kernel: list[int], *rest: Any) -> Tensor:
    """Means over neighbouring places, all of which flip alike."""
    places = range(x.dim() - len(rules.result_shapes[0]) + 2, x.dim())
    return rules.common(x, list(places)[-len(kernel) :]).expand(rules.result_shapes[0])


@_rule(aten.embedding)
def embedding(rules: ParityRules, weight: Tensor, index: Tensor, *rest: Any) -> Tensor:
    """Rows of a table, all of which flip alike."""
    rules.refuse(index)
    return rules.common(weight, 0).expand(rules.result_shapes[0])


@_rule(aten.index_select)
def index_select(rules: ParityRules, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Slices, all of which flip alike."""
    rules.refuse(index)
    return rules.common(x, dim).expand(rules.result_shapes[0])


@_rule(aten.index.Tensor)
def index(rules: ParityRules, x: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Entries in places that are not looked at, all of which flip alike."""
    places = {dim: place for dim, place in enumerate(indices) if place is not None}
    for place in places.values():
        rules.refuse(place)
    first = [None if place is None else torch.zeros_like(place) for place in indices]
    chosen: Tensor = aten.index.Tensor(rules.common(x, places), first)
    return chosen


@_rule(aten.view.default, aten._unsafe_view, aten.reshape)
def reshape(rules: ParityRules, x: Tensor, shape: list[int]) -> Tensor:
    """Another shape for the same entries."""
    return x.reshape(shape)


@_rule(aten.constant_pad_nd)
def pad(rules: ParityRules, x: Tensor, padding: list[int], value: float = 0) -> Tensor:
    """Entries around others."""
    padded: Tensor = aten.constant_pad_nd(x, padding, INVARIANT if value else ZERO)
    return padded


@_rule(aten.copy)
def copy(rules: ParityRules, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
    """Overwriting every entry with those of another tensor."""
    return y.expand(x.shape)


@_rule(aten.zero, aten.fill.Scalar)
def fill(rules: ParityRules, x: Tensor, value: float = 0) -> Tensor:
    """Overwriting every entry with one number."""
    return _parity(value, x).expand(x.shape)


def _parity(argument: Tensor | float, like: Tensor) -> Tensor:
    """The parity of an argument that may be a number."""
    if isinstance(argument, Tensor):
        return argument
    return like.new_tensor(INVARIANT if argument else ZERO)


def _register_moves() -> None:
    for operation in (
        *(aten.permute.default, aten.t.default, aten.transpose.int, aten.unsqueeze.default),
        *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default),
        *(aten.repeat.default, aten.slice.Tensor, aten.select.int, aten.unbind.int),
        *(aten.split.Tensor, aten.unsafe_split.Tensor, aten.split_with_sizes.default),
        *(aten.unsafe_split_with_sizes.default, aten.cat.default, aten.stack.default),
        *(aten.diagonal.default, aten.flip.default, aten.roll.default, aten.unfold.default),
    ):
        _rule(operation)(_move(operation))
    # The in-place variant of this one alone has another overload.
    _TABLE["aten.transpose.default"] = _TABLE["aten.transpose.int"]


def _move(operation: Any) -> ParityRule:
    parameters = operation._schema.arguments

    def move(rules: ParityRules, *arguments: Any) -> Any:
        """The same entries elsewhere."""
        named = list(zip(parameters, arguments, strict=True))
        positional = [value for parameter, value in named if not parameter.kwarg_only]
        keywords = {p.name: value for p, value in named if p.kwarg_only}
        return operation(*positional, **keywords)

    return move


_register_moves()
