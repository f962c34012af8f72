"""Looking entries up by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.permutations.expressions import UNIT, AxisExpr, size_of
from pyro_perm.discovery.permutations.rules.pointwise import broadcast
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten

BY_A_MASK = "selected by a mask; torch.where leaves entries in place"


@register_axis_rule(aten.index.Tensor, *operators("_unsafe_index.Tensor"))
def index(rules: AxisRules, tensor: AxisTensor, indices: list[AxisTensor | None]) -> Axes:
    """``tensor[i, :, j]``, where the index tensors broadcast against each other."""
    places = [d for d, i in enumerate(indices) if i is not None]
    tensors = [i for i in indices if i is not None]
    if any(i.is_mask for i in tensors):
        rules.freeze([axis for t in (tensor, *tensors) for axis in t], BY_A_MASK)
        return [rules.fixed(size) for size in rules.result_shapes[0]]
    if len(tensors) == 1 and (order := new_order(tensor[places[0]], tensors[0])):
        return _reordered(rules, tensor, places[0], order)
    looked_up = broadcast(rules, tensors)
    for d, i in zip(places, tensors, strict=True):
        look_up(rules, tensor[d], i)
    rest = [axis for d, axis in enumerate(tensor) if d not in places]
    is_block = places == list(range(places[0], places[-1] + 1))
    start = places[0] if is_block else 0
    return [*rest[:start], *looked_up, *rest[start:]]


@register_axis_rule(aten.index_select)
def index_select(rules: AxisRules, tensor: AxisTensor, dim: int, i: AxisTensor) -> Axes:
    """The entries of a dimension that an index names."""
    if order := new_order(tensor[dim], i):
        return _reordered(rules, tensor, dim, order)
    look_up(rules, tensor[dim], i)
    axes = list(tensor)
    axes[dim] = i[0] if len(i) else UNIT
    return axes


@register_axis_rule(aten.embedding)
def embedding(rules: AxisRules, tensor: AxisTensor, i: AxisTensor, *rest: Any) -> Axes:
    """The rows of a matrix that an index names."""
    look_up(rules, tensor[0], i)
    return [*i, *tensor.axes[1:]]


@register_axis_rule(*operators("_embedding_bag", "_embedding_bag_forward_only"))
def embedding_bag(
    rules: AxisRules, tensor: AxisTensor, i: AxisTensor, offsets: AxisTensor, *rest: Any
) -> tuple[Axes, ...]:
    """Sums, means or maxima of the rows of a matrix that an index names, bag by bag."""
    weights = [argument for argument in rest if isinstance(argument, AxisTensor)]
    for numbers in (i, offsets, *weights):
        rules.freeze(numbers, "in the order of the bags")
    rules.freeze(tensor[0], f"indexed by {rules.operation}")
    bags, *others = rules.result_shapes
    if rules.is_used[3]:
        rules.freeze(tensor[1])
    return (
        [rules.fixed(bags[0]), tensor[1]],
        *([rules.fixed(length) for length in shape] for shape in others),
    )


@register_axis_rule(aten.gather)
def gather(rules: AxisRules, tensor: AxisTensor, dim: int, i: AxisTensor, *rest: Any) -> Axes:
    """The entries along a dimension that an index names, for each place by itself."""
    dim %= len(tensor)
    look_up(rules, tensor[dim], i)
    for d, (x, y) in enumerate(zip(tensor, i, strict=True)):
        if d == dim:
            continue
        if size_of(x) == size_of(y):
            rules.tie(x, y)
        else:
            rules.freeze([x, y])
    return list(i)


def new_order(axis: AxisExpr, i: AxisTensor) -> list[int] | None:
    """The order in which a constant index names every entry of an axis once, if it is another."""
    if i.content is None or i.content.dim() != 1 or i.content.is_floating_point():
        return None
    length = size_of(axis)
    order = [place % length for place in i.content.tolist()]
    every = list(range(length))
    return order if sorted(order) == every and order != every else None


def _reordered(rules: AxisRules, tensor: AxisTensor, dim: int, order: list[int]) -> Axes:
    axes = list(tensor)
    axes[dim] = rules.rearranged(axes[dim], order)
    return axes


def look_up(rules: AxisRules, axis: AxisExpr, i: AxisTensor) -> None:
    """Name entries of an axis: it can be permuted only if the names are permuted with it.

    That is so where the index counts ``0, 1, 2, ...`` along one of its own dimensions, as the
    values of an enumerated variable do; all other indices are numbers, which nobody permutes.
    """
    dim = naming_dim(axis, i)
    if dim is None:
        rules.freeze(axis, f"indexed by {rules.operation}")
    else:
        rules.tie(axis, i[dim])
        rules.names.append(i)


def naming_dim(axis: AxisExpr, i: AxisTensor) -> int | None:
    """The dimension along which an index counts the entries of an axis, from the right."""
    if i.content is not None:
        for d, length in enumerate(i.content.shape):
            if length == size_of(axis) and _counts_along(i.content, d):
                return d - len(i)
    return None


def _counts_along(content: Tensor, dim: int) -> bool:
    shape = [1] * content.dim()
    shape[dim] = -1
    count = torch.arange(content.shape[dim], device="cpu").view(shape)
    return not content.is_floating_point() and bool((content == count).all())
