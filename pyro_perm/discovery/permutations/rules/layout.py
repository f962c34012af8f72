"""Reshaping, transposing, cutting and joining tensors."""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.digits import stack_along
from pyro_perm.discovery.permutations.expressions import (
    UNIT,
    AxisExpr,
    is_frozen,
    product_of,
    resolve,
    size_of,
    sum_of,
)
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    moves_entries,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


@register_axis_rule(
    *(aten.view.default, aten.reshape, aten.view_copy), *operators("_unsafe_view", "_reshape_alias")
)
@moves_entries
def view(rules: AxisRules, tensor: AxisTensor, shape: list[int], *rest: Any) -> Axes:
    """Row-major reshape: runs of dimensions with equal products are flattened, then unflattened."""
    total = size_of(product_of(tensor))
    known = size_of(product_of(rules.free(size) for size in shape if size != -1))
    sizes = [total // known if size == -1 and known else size for size in shape]
    result: Axes = []
    old, new = list(tensor), list(sizes)
    while new:
        run_old, run_new = old[:1], new[:1]
        old, new = old[1:], new[1:]
        while (left := size_of(product_of(run_old))) != (right := _product(run_new)):
            if left < right:
                run_old.append(old.pop(0))
            else:
                run_new.append(new.pop(0))
        result += rules.unflatten(rules.flatten(run_old), run_new)
    return result


@register_axis_rule(aten.as_strided)
def as_strided(
    rules: AxisRules, tensor: AxisTensor, size: list[int], stride: list[int], offset: int | None
) -> Axes:
    """Leave all entries where they are, but for the strides of dimensions of length one.

    Pooling to one place ends so, where its argument has the channels last in memory.
    """
    strides = [_product(size[dim + 1 :]) for dim in range(len(size))]
    same = all(s == t or n == 1 for s, t, n in zip(stride, strides, size, strict=True))
    if same and tuple(size) == tensor.shape and not offset:
        return list(tensor)
    rules.freeze(tensor, "entries by their place in memory")
    return [rules.fixed(length) for length in size]


@register_axis_rule(aten.permute)
@moves_entries
def permute(rules: AxisRules, tensor: AxisTensor, dims: list[int]) -> Axes:
    """Reorder dimensions."""
    return [tensor[dim] for dim in dims]


@register_axis_rule(aten.t)
@moves_entries
def matrix_transpose(rules: AxisRules, tensor: AxisTensor) -> Axes:
    """Transpose a matrix, or leave a vector alone."""
    return list(tensor)[::-1]


@register_axis_rule(aten.transpose)
@moves_entries
def transpose(rules: AxisRules, tensor: AxisTensor, first: int, second: int) -> Axes:
    """Swap two dimensions."""
    axes = list(tensor)
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return axes


@register_axis_rule(aten.unsqueeze)
@moves_entries
def unsqueeze(rules: AxisRules, tensor: AxisTensor, dim: int) -> Axes:
    """Insert a dimension of length one."""
    axes = list(tensor)
    axes.insert(dim % (len(axes) + 1), UNIT)
    return axes


@register_axis_rule(aten.squeeze)
@moves_entries
def squeeze(rules: AxisRules, tensor: AxisTensor, dims: int | list[int] | None = None) -> Axes:
    """Remove dimensions of length one."""
    rank = len(tensor)
    each = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    named = {dim % rank for dim in each} if rank else set()
    return [axis for d, axis in enumerate(tensor) if not (d in named and size_of(axis) == 1)]


@register_axis_rule(aten.expand)
def expand(rules: AxisRules, tensor: AxisTensor, shape: list[int], *rest: Any) -> Axes:
    """Repeat along dimensions of length one; all copies are equal."""
    padded = [UNIT] * (len(shape) - len(tensor)) + list(tensor)
    return [
        rules.free(size) if axis == UNIT and size != -1 else axis
        for axis, size in zip(padded, shape, strict=True)
    ]


@register_axis_rule(aten.repeat)
def repeat(rules: AxisRules, tensor: AxisTensor, repeats: list[int]) -> Axes:
    """Lay copies end to end."""
    padded = [UNIT] * (len(repeats) - len(tensor)) + list(tensor)
    return [product_of([rules.free(r), axis]) for axis, r in zip(padded, repeats, strict=True)]


@register_axis_rule(aten.slice.Tensor)
@moves_entries
def cut(
    rules: AxisRules,
    tensor: AxisTensor,
    dim: int,
    start: int | None,
    end: int | None,
    step: int,
) -> Axes:
    """A segment of a dimension, or every ``step``-th entry of it."""
    axes, length = list(tensor), tensor.shape[dim]
    begin, stop, _ = slice(start, end).indices(length)
    stacked = stack_along(axes, dim)
    if stacked and step == 1 and begin < stop:
        axes = stacked.replaced(axes, stacked.some(slice(begin, stop)).axes())
    elif step == 1:
        stop = max(begin, stop)
        axes[dim] = rules.segments(axes[dim], [begin, stop - begin, length - stop])[1]
    else:
        axes[dim] = _column(rules, axes[dim], range(begin, stop, step))
    return axes


def _column(rules: AxisRules, axis: AxisExpr, places: range) -> AxisExpr:
    """Every ``step``-th entry: a column of a matrix with rows of ``step`` entries."""
    column = places.start % places.step
    start, length, total = places.start - column, len(places) * places.step, size_of(axis)
    if start + length > total:  # the last row is cut short
        rules.freeze(axis)
        return rules.fixed(len(places))
    matrix = rules.segments(axis, [start, length, total - start - length])[1]
    rows, columns = rules.factors(matrix, [len(places), places.step])
    rules.segments(columns, [column, 1, places.step - 1 - column])
    return rows


@register_axis_rule(aten.select.int)
@moves_entries
def select(rules: AxisRules, tensor: AxisTensor, dim: int, index: int) -> Axes:
    """One entry of a dimension."""
    axes, length = list(tensor), tensor.shape[dim]
    if stacked := stack_along(axes, dim):
        axes = stacked.replaced(axes, [UNIT, stacked.rows[index]])
    else:
        rules.segments(axes[dim], [index % length, 1, length - 1 - index % length])
    del axes[dim]
    return axes


@register_axis_rule(aten.split.Tensor, aten.unsafe_split.Tensor)
def split(rules: AxisRules, tensor: AxisTensor, size: int, dim: int) -> tuple[Axes, ...]:
    """Segments of one size; the last may be shorter."""
    length = tensor.shape[dim]
    sizes = [min(size, length - start) for start in range(0, length, size)]
    return split_with_sizes(rules, tensor, sizes, dim)


@register_axis_rule(aten.split_with_sizes, aten.unsafe_split_with_sizes)
def split_with_sizes(
    rules: AxisRules, tensor: AxisTensor, sizes: list[int], dim: int
) -> tuple[Axes, ...]:
    """Segments of given sizes."""
    dim %= len(tensor)
    return tuple(
        [*tensor.axes[:dim], segment, *tensor.axes[dim + 1 :]]
        for segment in rules.segments(tensor[dim], sizes)
    )


@register_axis_rule(aten.glu)
def gated_half(rules: AxisRules, tensor: AxisTensor, dim: int) -> Axes:
    """The first half of a dimension, times a function of the second."""
    axes, half = list(tensor), tensor.shape[dim] // 2
    axes[dim] = rules.tie(*rules.segments(axes[dim], [half, half]))
    return axes


@register_axis_rule(aten.unbind)
@moves_entries
def unbind(rules: AxisRules, tensor: AxisTensor, dim: int) -> tuple[Axes, ...]:
    """Every entry of a dimension by itself."""
    dim %= len(tensor)
    if stacked := stack_along(tensor.axes, dim):
        entries = [stacked.replaced(tensor.axes, [UNIT, row]) for row in stacked.rows]
        return tuple([*axes[:dim], *axes[dim + 1 :]] for axes in entries)
    rules.freeze(tensor[dim], f"taken apart by {rules.operation}")
    return tuple([*tensor.axes[:dim], *tensor.axes[dim + 1 :]] for _ in range(tensor.shape[dim]))


@register_axis_rule(aten.cat)
def cat(rules: AxisRules, tensors: list[AxisTensor], dim: int) -> Axes:
    """Lay tensors end to end along a dimension."""
    tensors = [tensor for tensor in tensors if tensor.shape != (0,)]
    joined = _tied_beside(rules, tensors, dim % len(tensors[0]))
    joined[dim] = sum_of(tensor[dim] for tensor in tensors)
    return joined


@register_axis_rule(aten.stack)
def stack(rules: AxisRules, tensors: list[AxisTensor], dim: int) -> Axes:
    """Lay tensors side by side along a new dimension."""
    first, *others = tensors
    own = [d for d, axis in enumerate(first) if any(_differ(axis, x[d]) for x in others)]
    if len(own) == 1:
        axes = _tied_beside(rules, tensors, own[0])
        number, axes[own[0]] = rules.stack([tensor[own[0]] for tensor in tensors])
    else:
        axes = _tied_beside(rules, tensors, None)
        number = rules.fixed(len(tensors), f"joined by {rules.operation}")
    axes.insert(dim % (len(axes) + 1), number)
    return axes


def _differ(x: AxisExpr, y: AxisExpr) -> bool:
    return resolve(x) != resolve(y) and not (is_frozen(x) and is_frozen(y))


@register_axis_rule(aten.constant_pad_nd)
def pad(rules: AxisRules, tensor: AxisTensor, widths: list[int], *value: Any) -> Axes:
    """Add equal entries, or with negative widths remove entries, at both ends of dimensions."""
    axes = list(tensor)
    for position in range(0, len(widths), 2):
        dim, (before, after) = -1 - position // 2, widths[position : position + 2]
        kept: AxisExpr = axes[dim]
        cuts = [max(-before, 0), size_of(kept) - max(-before, 0) - max(-after, 0), max(-after, 0)]
        if cuts[0] or cuts[2]:
            kept = rules.segments(kept, cuts)[1]
        axes[dim] = sum_of([rules.free(max(before, 0)), kept, rules.free(max(after, 0))])
    return axes


@register_axis_rule(aten.diagonal)
def diagonal(rules: AxisRules, tensor: AxisTensor, offset: int, first: int, second: int) -> Axes:
    """Entries whose coordinates along two dimensions agree."""
    rank = len(tensor)
    x, y = tensor[first], tensor[second]
    rest = [axis for d, axis in enumerate(tensor) if d not in (first % rank, second % rank)]
    if offset == 0 and size_of(x) == size_of(y):
        return [*rest, rules.tie(x, y)]
    rules.freeze([x, y])
    length = min(size_of(x) + min(offset, 0), size_of(y) - max(offset, 0))
    return [*rest, rules.fixed(max(length, 0))]


@register_axis_rule(aten.diag_embed)
def diag_embed(rules: AxisRules, tensor: AxisTensor, offset: int, first: int, second: int) -> Axes:
    """A matrix with given diagonal; the matrix is permuted along both dimensions."""
    if offset:
        rules.freeze(tensor[-1])
    size = size_of(tensor[-1]) + abs(offset)
    axis = tensor[-1] if not offset else rules.fixed(size)
    axes = list(tensor)[:-1]
    rank = len(axes) + 2
    for dim in sorted((first % rank, second % rank)):
        axes.insert(dim, axis)
    return axes


def _tied_beside(rules: AxisRules, tensors: list[AxisTensor], joined: int | None) -> Axes:
    """Tie the dimensions of several tensors, except the one along which they are joined."""
    first, *others = tensors
    for other in others:
        for d, (x, y) in enumerate(zip(first, other, strict=True)):
            if d != joined:
                rules.tie(x, y)
    return list(first)


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
