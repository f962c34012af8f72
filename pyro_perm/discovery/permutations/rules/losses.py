"""Losses: what they compare is permuted alike, and their mean or sum forgets the order."""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.rules.pointwise import broadcast
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)

aten = torch.ops.aten


@register_axis_rule(
    *(aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss, aten.soft_margin_loss),
    *(aten.binary_cross_entropy, aten.binary_cross_entropy_with_logits),
)
def entrywise_loss(rules: AxisRules, *arguments: Any) -> Axes:
    """A loss of every entry by itself, reduced unless ``reduction`` is 0."""
    axes = broadcast(rules, [a for a in arguments if isinstance(a, AxisTensor)])
    return axes if len(rules.result_shapes[0]) == len(axes) else []


@register_axis_rule(aten.nll_loss_forward, aten.nll_loss2d_forward)
def loss_of_labels(
    rules: AxisRules, x: AxisTensor, label: AxisTensor, weight: AxisTensor | None, *rest: Any
) -> tuple[Axes, Axes]:
    """An entry along the dimension of the classes, which a label names; and its weight."""
    classes = 1 if len(x) > 1 else 0
    rules.freeze(x[classes], f"indexed by {rules.operation}")
    if weight is not None:
        rules.tie(x[classes], weight[0])
    places = [axis for d, axis in enumerate(x) if d != classes]
    axes = [rules.tie(one, other) for one, other in zip(places, label, strict=True)]
    return axes if len(rules.result_shapes[0]) == len(axes) else [], []


@register_axis_rule(aten.multi_margin_loss)
def margin_of_labels(
    rules: AxisRules, x: AxisTensor, label: AxisTensor, p: Any, margin: Any, *rest: Any
) -> Axes:
    """The entry that a label names against all others."""
    weights = [argument for argument in rest if isinstance(argument, AxisTensor)]
    rules.freeze([x[-1], *(axis for weight in weights for axis in weight)], "named by labels")
    axes = broadcast(rules, [AxisTensor(x.axes[:-1]), label])
    return axes if len(rules.result_shapes[0]) == len(axes) else []
