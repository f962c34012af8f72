"""Writing entries to places that an index names: sums over the edges of a graph, for one.

Along the dimension in which an index names places, the tensor that is written keeps its order, for
the index says numbers. What is written may be permuted together with the index where the order
of writes does not matter, as in a sum.
"""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.expressions import AxisExpr, size_of
from pyro_perm.discovery.permutations.rules.indexing import BY_A_MASK, look_up, naming_dim
from pyro_perm.discovery.permutations.rules.indexing import index as look_up_all
from pyro_perm.discovery.permutations.rules.pointwise import broadcast
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


@register_axis_rule(aten.index_add, aten.index_reduce)
def index_add(
    rules: AxisRules,
    tensor: AxisTensor,
    dim: int,
    index: AxisTensor,
    source: AxisTensor,
    *rest: Any,
) -> Axes:
    """``tensor[index[i]] += source[i]``, along a dimension."""
    if not len(tensor) or len(source) != len(tensor) or len(index) != 1:
        return _frozen(rules, tensor, source, index)
    look_up(rules, tensor[dim], index)
    for d, (x, y) in enumerate(zip(tensor, source, strict=True)):
        rules.tie(index[0] if d == dim % len(tensor) else x, y)
    return list(tensor)


@register_axis_rule(aten.index_copy)
def index_copy(
    rules: AxisRules, tensor: AxisTensor, dim: int, index: AxisTensor, source: AxisTensor
) -> Axes:
    """``tensor[index[i]] = source[i]``, along a dimension: the last of several writes stays."""
    axes = index_add(rules, tensor, dim, index, source)
    if index not in rules.names:
        rules.freeze(index)
    return axes


@register_axis_rule(aten.index_fill)
def index_fill(rules: AxisRules, tensor: AxisTensor, dim: int, index: AxisTensor, *_: Any) -> Axes:
    """One number in all the places along a dimension that an index names."""
    if len(tensor):
        look_up(rules, tensor[dim], index)
    return list(tensor)


@register_axis_rule(aten.scatter_add, aten.scatter_reduce.two, aten.scatter.reduce)
def scatter_sum(
    rules: AxisRules,
    tensor: AxisTensor,
    dim: int,
    index: AxisTensor,
    source: AxisTensor,
    *rest: Any,
) -> Axes:
    """``tensor[index[i, j], j] += source[i, j]``, or another operation that forgets the order."""
    scatter_value(rules, tensor, dim, index)
    for x, y in zip(index, source, strict=True):
        _meet(rules, x, y)
    return list(tensor)


@register_axis_rule(aten.scatter.src)
def scatter(
    rules: AxisRules, tensor: AxisTensor, dim: int, index: AxisTensor, source: AxisTensor
) -> Axes:
    """``tensor[index[i, j], j] = source[i, j]``: the last of several writes stays."""
    axes = scatter_sum(rules, tensor, dim, index, source)
    if len(index):
        rules.freeze(index[dim])
    return axes


@register_axis_rule(aten.scatter.value, aten.scatter.value_reduce)
def scatter_value(
    rules: AxisRules, tensor: AxisTensor, dim: int, index: AxisTensor, *rest: Any
) -> Axes:
    """One number, in places ``(index[i, j], j)``."""
    if not len(tensor) or not len(index):
        return _frozen(rules, tensor, index)
    look_up(rules, tensor[dim], index)
    for d, (x, y) in enumerate(zip(tensor, index, strict=True)):
        if d != dim % len(tensor):
            _meet(rules, x, y)
    return list(tensor)


@register_axis_rule(aten.index_put, *operators("_index_put_impl", "_unsafe_index_put"))
def index_put(
    rules: AxisRules,
    tensor: AxisTensor,
    indices: list[AxisTensor | None],
    values: AxisTensor,
    accumulate: bool,
    *rest: Any,
) -> Axes:
    """``tensor[i, :, j] = values``, or ``+=``."""
    named = [i for i in indices if i is not None]
    if any(i.is_mask for i in named):
        return _put_where(rules, tensor, indices, values)
    places = look_up_all(rules, tensor, indices)
    broadcast(rules, [AxisTensor(tuple(places)), values])
    if not accumulate:
        pairs = [(tensor[d], i) for d, i in enumerate(indices) if i is not None]
        counted = {naming_dim(axis, i) for axis, i in pairs}
        for i in named:
            uncounted = [axis for d, axis in enumerate(i) if d - len(i) not in counted]
            rules.freeze(uncounted, "written in the order of an index")
    return list(tensor)


def _put_where(
    rules: AxisRules, tensor: AxisTensor, indices: list[AxisTensor | None], values: AxisTensor
) -> Axes:
    """One value wherever a mask says so."""
    (mask, *others), one_value = indices, all(size_of(axis) == 1 for axis in values)
    if mask is None or others or not one_value:
        given = [i for i in indices if i is not None]
        return _frozen(rules, tensor, *given, values, cause=BY_A_MASK)
    for x, y in zip(tensor, mask, strict=False):
        rules.tie(x, y)
    return list(tensor)


@register_axis_rule(aten.select_scatter)
def select_scatter(
    rules: AxisRules, tensor: AxisTensor, source: AxisTensor, dim: int, place: int
) -> Axes:
    """``tensor[place] = source``, along a dimension."""
    dim, length = dim % len(tensor), tensor.shape[dim]
    rules.segments(tensor[dim], [place % length, 1, length - 1 - place % length])
    for x, y in zip([*tensor.axes[:dim], *tensor.axes[dim + 1 :]], source, strict=True):
        rules.tie(x, y)
    return list(tensor)


@register_axis_rule(aten.slice_scatter)
def slice_scatter(
    rules: AxisRules,
    tensor: AxisTensor,
    source: AxisTensor,
    dim: int,
    start: int | None,
    end: int | None,
    step: int,
) -> Axes:
    """``tensor[start:end] = source``, along a dimension."""
    dim, length = dim % len(tensor), tensor.shape[dim]
    begin, stop, _ = slice(start, end).indices(length)
    for d, (x, y) in enumerate(zip(tensor, source, strict=True)):
        if d != dim:
            rules.tie(x, y)
        elif step == 1:
            stop = max(begin, stop)
            rules.tie(rules.segments(x, [begin, stop - begin, length - stop])[1], y)
        else:
            rules.freeze([x, y])
    return list(tensor)


@register_axis_rule(aten.diagonal_scatter)
def diagonal_scatter(
    rules: AxisRules, tensor: AxisTensor, source: AxisTensor, offset: int, first: int, second: int
) -> Axes:
    """A matrix with another diagonal."""
    first, second = first % len(tensor), second % len(tensor)
    rest = [axis for d, axis in enumerate(tensor) if d not in (first, second)]
    for x, y in zip(rest, source.axes[:-1], strict=True):
        rules.tie(x, y)
    if offset == 0 and size_of(tensor[first]) == size_of(tensor[second]):
        rules.tie(rules.tie(tensor[first], tensor[second]), source[-1])
    else:
        rules.freeze([tensor[first], tensor[second], source[-1]])
    return list(tensor)


def _meet(rules: AxisRules, x: AxisExpr, y: AxisExpr) -> None:
    """Permute two axes alike, or nothing along them if one is the beginning of the other."""
    if size_of(x) == size_of(y):
        rules.tie(x, y)
    else:
        rules.freeze([x, y])


def _frozen(rules: AxisRules, *tensors: AxisTensor, cause: str | None = None) -> Axes:
    for tensor in tensors:
        rules.freeze(tensor, cause)
    return list(tensors[0])
