"""Operations for which the order along a dimension matters."""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)

aten = torch.ops.aten


@register_axis_rule(aten.cumsum, aten.cumprod, aten.logcumsumexp)
def cumulative(rules: AxisRules, tensor: AxisTensor, dim: int, *rest: Any) -> Axes:
    """Running totals."""
    if len(tensor):
        rules.freeze(tensor[dim])
    return list(tensor)


@register_axis_rule(aten.sort.default, aten.topk)
def sort(rules: AxisRules, tensor: AxisTensor, *rest: Any) -> tuple[Axes, Axes]:
    """Sorted values do not depend on the order of their dimension, their places do."""
    if not len(tensor):
        return [], []
    size, dim = rest[:2] if rules.operation.startswith("aten.topk") else (None, rest[0])
    if rules.is_used[1]:
        rules.freeze(tensor[dim])
    axes = list(tensor)
    axes[dim] = rules.fixed(tensor.shape[dim] if size is None else size)
    return axes, axes


@register_axis_rule(aten.tril, aten.triu)
def triangle(rules: AxisRules, tensor: AxisTensor, diagonal: int) -> Axes:
    """One triangle of a matrix."""
    rules.freeze(tensor.axes[-2:])
    return list(tensor)
