"""Matrix products: the two axes that are summed over are permuted alike."""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.expressions import UNIT
from pyro_perm.discovery.permutations.rules.pointwise import broadcast
from pyro_perm.discovery.permutations.rules.reduction import remaining_axes
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


@register_axis_rule(aten.mm, aten.bmm)
def matrix_product(rules: AxisRules, x: AxisTensor, y: AxisTensor) -> Axes:
    """``(*b, i, k) @ (*b, k, j)``."""
    rules.tie(x[-1], y[-2])
    batch = [rules.tie(a, b) for a, b in zip(x.axes[:-2], y.axes[:-2], strict=True)]
    return [*batch, x[-2], y[-1]]


@register_axis_rule(aten.mv)
def matrix_vector(rules: AxisRules, x: AxisTensor, y: AxisTensor) -> Axes:
    """``(i, k) @ (k,)``."""
    rules.tie(x[1], y[0])
    return [x[0]]


@register_axis_rule(aten.dot, aten.vdot)
def inner_product(rules: AxisRules, x: AxisTensor, y: AxisTensor) -> Axes:
    """``(k,) @ (k,)``."""
    rules.tie(x[0], y[0])
    return []


@register_axis_rule(aten.addmm, aten.baddbmm)
def add_matrix_product(
    rules: AxisRules, bias: AxisTensor, x: AxisTensor, y: AxisTensor, *scales: Any
) -> Axes:
    """``bias + x @ y``."""
    return broadcast(rules, [bias, AxisTensor(tuple(matrix_product(rules, x, y)))])


@register_axis_rule(aten.addmv)
def add_matrix_vector(
    rules: AxisRules, bias: AxisTensor, x: AxisTensor, y: AxisTensor, *scales: Any
) -> Axes:
    """``bias + x @ y`` for a vector y."""
    return broadcast(rules, [bias, AxisTensor(tuple(matrix_vector(rules, x, y)))])


@register_axis_rule(aten.addr)
def add_outer_product(
    rules: AxisRules, bias: AxisTensor, x: AxisTensor, y: AxisTensor, *scales: Any
) -> Axes:
    """``bias + x y^T``."""
    return broadcast(rules, [bias, AxisTensor((x[0], y[0]))])


@register_axis_rule(*operators("_cdist_forward", "_euclidean_dist"))
def distances(rules: AxisRules, x: AxisTensor, y: AxisTensor, *rest: Any) -> Axes:
    """Distances between the rows of two matrices."""
    rules.tie(x[-1], y[-1])
    batch = broadcast(rules, [AxisTensor(x.axes[:-2]), AxisTensor(y.axes[:-2])])
    return [*batch, x[-2], y[-2]]


@register_axis_rule(*operators("_pdist_forward"))
def distances_of_pairs(rules: AxisRules, x: AxisTensor, *rest: Any) -> Axes:
    """Distances between each row of a matrix and the following ones."""
    rules.freeze(x[0])
    return [rules.fixed(length) for length in rules.result_shapes[0]]


@register_axis_rule(*operators("_trilinear"))
def trilinear(rules: AxisRules, x: AxisTensor, y: AxisTensor, z: AxisTensor, *dims: Any) -> Axes:
    """Products of three tensors with new dimensions, summed along some."""
    spread = [_with_units(*pair) for pair in zip((x, y, z), dims, strict=False)]
    return remaining_axes(AxisTensor(tuple(broadcast(rules, spread))), dims[3], False)


def _with_units(x: AxisTensor, dims: list[int]) -> AxisTensor:
    axes = list(x)
    for dim in sorted(dims):
        axes.insert(dim, UNIT)
    return AxisTensor(tuple(axes))
