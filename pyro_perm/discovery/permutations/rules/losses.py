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
