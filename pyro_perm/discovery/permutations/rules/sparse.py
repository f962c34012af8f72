"""Sparse tensors: matrices like others, as long as nobody asks for the order of their entries."""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.rules.contraction import add_matrix_product, matrix_product
from pyro_perm.discovery.permutations.rules.pointwise import broadcast
from pyro_perm.discovery.permutations.rules.reduction import remaining_axes, softmax
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten

register_axis_rule(*operators("_sparse_addmm", "sparse_sampled_addmm"))(add_matrix_product)
register_axis_rule(*operators("_sparse_sparse_matmul"))(matrix_product)
register_axis_rule(*operators("_sparse_softmax", "_sparse_log_softmax"))(softmax)
register_axis_rule(
    *operators("_to_dense", "_to_sparse", "_to_sparse_csr", "_to_sparse_csc", "_coalesce"),
    *operators("to_sparse", "to_sparse_csr", "to_sparse_csc", "to_dense", "sparse_mask"),
)(lambda rules, x, *rest: broadcast(rules, [t for t in (x, *rest) if isinstance(t, AxisTensor)]))


@register_axis_rule(*operators("_sparse_mm_reduce_impl"))
def product_by_reduction(
    rules: AxisRules, x: AxisTensor, y: AxisTensor, *rest: Any
) -> tuple[Axes, Axes]:
    """A matrix product with another reduction than the sum, and the places of extremes."""
    axes = matrix_product(rules, x, y)
    if rules.is_used[1]:
        rules.freeze(x[-1])
    return axes, axes


@register_axis_rule(*operators("_sparse_sum.dim"))
def sum_along(rules: AxisRules, x: AxisTensor, dims: list[int], *rest: Any) -> Axes:
    """Sums along some dimensions."""
    return remaining_axes(x, dims, False)


@register_axis_rule(*operators("_sparse_coo_tensor_with_dims_and_tensors"))
def coordinate_tensor(
    rules: AxisRules,
    num_sparse: int,
    num_dense: int,
    size: Any,
    indices: AxisTensor,
    values: AxisTensor,
    *rest: Any,
) -> Axes:
    """Values at numbered places; values at the same place are added."""
    rules.freeze(indices[0], "coordinates of a sparse tensor")
    rules.tie(indices[1], values[0])
    (shape,) = rules.result_shapes
    return [
        *(rules.fixed(n, "indexed by a sparse tensor") for n in shape[:num_sparse]),
        *values.axes[1:],
    ]


@register_axis_rule(
    *(aten.values, aten.indices, aten.crow_indices, aten.col_indices),
    *operators("_values", "_indices", "ccol_indices", "row_indices"),
)
def entries(rules: AxisRules, x: AxisTensor) -> Axes:
    """The entries of a sparse tensor or their places, one after the other."""
    rules.freeze(x, "entries of a sparse tensor in their order")
    return [
        rules.fixed(n, "entries of a sparse tensor in their order") for n in rules.result_shapes[0]
    ]
