"""Batch, layer, group and instance normalization."""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.expressions import UNIT, product_of, size_of
from pyro_perm.discovery.permutations.rules.pointwise import broadcast
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


@register_axis_rule(aten.native_layer_norm)
def layer_norm(
    rules: AxisRules,
    x: AxisTensor,
    shape: list[int],
    weight: AxisTensor | None,
    bias: AxisTensor | None,
    eps: float,
) -> tuple[Axes, ...]:
    """Normalizes the last dimensions together; returns the mean and the scale too."""
    axes = broadcast(rules, [t for t in (x, weight, bias) if t is not None])
    moments = [*axes[: len(axes) - len(shape)], *[UNIT] * len(shape)]
    return axes, moments, moments


@register_axis_rule(aten.native_group_norm)
def group_norm(
    rules: AxisRules,
    x: AxisTensor,
    weight: AxisTensor | None,
    bias: AxisTensor | None,
    batch: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> tuple[Axes, ...]:
    """Normalizes the channels of each group, and all places, together.

    Where the groups cut across the parts of a concatenation, each group has members of its own.
    """
    size = channels // groups
    if rules.has_factor(x[1], size):
        group, member = rules.factors(x[1], [groups, size])
        axis = product_of([group, member])
    else:
        rules.segments(x[1], [size] * groups, f"alone in a group of {rules.operation}")
        group, axis = rules.fixed(groups, f"groups of {rules.operation}"), x[1]
    _tie_affine(rules, axis, weight, bias)
    return [x[0], axis, *x.axes[2:]], [x[0], group], [x[0], group]


@register_axis_rule(aten.native_batch_norm)
def batch_norm(
    rules: AxisRules,
    x: AxisTensor,
    weight: AxisTensor | None,
    bias: AxisTensor | None,
    mean: AxisTensor | None,
    var: AxisTensor | None,
    is_training: bool,
    *rest: Any,
) -> tuple[Axes, ...]:
    """Normalizes each channel, over all else in training, by its running moments otherwise."""
    _tie_affine(rules, x[1], weight, bias)
    if not is_training:
        _tie_affine(rules, x[1], mean, var)
    results = list(x), [x[1]], [x[1]], [x[1]], [x[1]]  # the last two: running moments
    return results[: len(rules.result_shapes)]


@register_axis_rule(*operators("_weight_norm_interface"))
def weight_norm(
    rules: AxisRules, direction: AxisTensor, length: AxisTensor, *rest: Any
) -> tuple[Axes, Axes]:
    """Vectors along all dimensions but one, given by directions and lengths; and their norms."""
    axes = broadcast(rules, [direction, length])
    return axes, list(length)


def _tie_affine(rules: AxisRules, channels: Any, *vectors: AxisTensor | None) -> None:
    for vector in vectors:
        if vector is not None and size_of(vector[0]) == size_of(channels):
            rules.tie(channels, vector[0])
