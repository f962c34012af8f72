"""Sums, means, maxima and normalizations along dimensions: their order does not matter."""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.expressions import UNIT
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


def remaining_axes(tensor: AxisTensor, dims: int | list[int] | None, keepdim: bool) -> Axes:
    """The axes that are left after reducing some dimensions, or all of them."""
    rank = len(tensor)
    each = [dims] if isinstance(dims, int) else dims
    gone = {dim % rank for dim in each} if each and rank else set(range(rank))
    if keepdim:
        return [UNIT if dim in gone else axis for dim, axis in enumerate(tensor)]
    return [axis for dim, axis in enumerate(tensor) if dim not in gone]


@register_axis_rule(
    *(aten.sum.default, aten.mean.default, aten.prod.default, aten.amax, aten.amin, aten.logsumexp),
    *(aten.sum.dim_IntList, aten.nansum, aten.mean.dim, aten.prod.dim_int, aten.max.default),
    *(
        aten.min.default,
        aten.median.default,
        aten.nanmedian.default,
        aten.all,
        aten.any,
        aten.count_nonzero,
        *operators("_is_all_true", "_is_any_true"),
    ),
)
def reduction(
    rules: AxisRules,
    tensor: AxisTensor,
    dims: int | list[int] | None = None,
    keepdim: bool = False,
    *rest: Any,
) -> Axes:
    """One number for all entries along some dimensions."""
    return remaining_axes(tensor, dims, keepdim is True)


@register_axis_rule(
    *(aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction)
)
def moments(
    rules: AxisRules, tensor: AxisTensor, dims: Any, correction: Any, keepdim: bool
) -> Axes | tuple[Axes, ...]:
    """Variance, with or without the mean."""
    axes = remaining_axes(tensor, dims, keepdim)
    return (axes, axes) if len(rules.is_used) == 2 else axes


@register_axis_rule(
    *(aten.linalg_vector_norm, aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype)
)
def norm(
    rules: AxisRules, tensor: AxisTensor, order: Any, dims: Any, keepdim: bool, *rest: Any
) -> Axes:
    """A vector norm."""
    return remaining_axes(tensor, dims, keepdim)


@register_axis_rule(aten.norm.Scalar, aten.norm.ScalarOpt_dtype)
def norm_of_all(rules: AxisRules, tensor: AxisTensor, *rest: Any) -> Axes:
    """The norm of all entries."""
    return []


@register_axis_rule(aten.max.dim, aten.min.dim, aten.median.dim, aten.nanmedian.dim, aten.mode)
def extremum(rules: AxisRules, tensor: AxisTensor, dim: int, keepdim: bool) -> tuple[Axes, Axes]:
    """An extreme value and where it is; whoever uses the place depends on the order."""
    if rules.is_used[1] and len(tensor):
        rules.freeze(tensor[dim])
    axes = remaining_axes(tensor, dim, keepdim)
    return axes, axes


@register_axis_rule(aten.aminmax)
def extremes(
    rules: AxisRules, tensor: AxisTensor, dim: int | None, keepdim: bool
) -> tuple[Axes, Axes]:
    """Minimum and maximum."""
    axes = remaining_axes(tensor, dim, keepdim)
    return axes, axes


@register_axis_rule(aten.argmax, aten.argmin)
def place(rules: AxisRules, tensor: AxisTensor, dim: int | None, keepdim: bool) -> Axes:
    """Where an extreme value is."""
    rules.freeze(tensor if dim is None or not len(tensor) else tensor[dim])
    return remaining_axes(tensor, dim, keepdim)


@register_axis_rule(*operators("_softmax", "_log_softmax", "_safe_softmax"))
def softmax(rules: AxisRules, tensor: AxisTensor, *rest: Any) -> Axes:
    """Normalizes along a dimension and keeps it."""
    return list(tensor)
