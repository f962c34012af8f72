"""Batch, layer and group normalization: signs pass through, an epsilon ends scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.degrees import INVARIANT
from pyro_perm.discovery.gradings.rules.table import SCALES, SIGNS, GradingRules, grading_rule
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten

_ENDS = "adds an epsilon to the variance"


@grading_rule(aten.native_batch_norm, gradings=[SIGNS])
def batch_norm_of_signs(
    rules: GradingRules,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    is_training: bool,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Channels, all entries of which flip alike, standardized, scaled and shifted."""
    channels = rules.common(x, [dim for dim in range(x.dim()) if dim != 1]).flatten()
    if not is_training:
        rules.refuse(x)
        channels = torch.full_like(channels, INVARIANT)
    result = _shifted(rules, channels, weight, bias)
    return _along_channels(result, x.shape), channels, torch.zeros_like(channels)


@grading_rule(aten.native_batch_norm, aten.native_group_norm, gradings=[SCALES])
def channel_norm(
    rules: GradingRules, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Channels standardized, then scaled and shifted."""
    rules.refuse(x, _ENDS)
    result = _shifted(rules, torch.full([x.shape[1]], INVARIANT, device="cpu"), weight, bias)
    return _along_channels(result, x.shape), rules.invariant(1), rules.invariant(2)


@grading_rule(aten.native_layer_norm, gradings=[SCALES])
def layer_norm(
    rules: GradingRules,
    x: Tensor,
    shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The last dimensions standardized, then their entries scaled and shifted."""
    rules.refuse(x, _ENDS)
    result = _shifted(rules, torch.full(shape, INVARIANT, device="cpu"), weight, bias)
    return result.expand(x.shape), rules.invariant(1), rules.invariant(2)


@grading_rule(*operators("_weight_norm_interface"), gradings=[SIGNS])
def weight_norm_of_signs(
    rules: GradingRules, direction: Tensor, length: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Vectors along all dimensions but one, given by directions and lengths; and their norms."""
    return rules.product(direction, length), rules.invariant(1)


@grading_rule(*operators("_weight_norm_interface"), gradings=[SCALES])
def weight_norm(
    rules: GradingRules, direction: Tensor, length: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Vectors along all dimensions but one, given by directions and lengths; and their norms."""
    norms = rules.common(direction, [other for other in range(direction.dim()) if other != dim])
    return length.expand(direction.shape), norms


def _shifted(
    rules: GradingRules, standardized: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    result = standardized if weight is None else rules.product(standardized, weight)
    return result if bias is None else rules.together(result, bias)


def _along_channels(channels: Tensor, shape: torch.Size) -> Tensor:
    return channels.view(-1, *(1,) * (len(shape) - 2)).expand(shape)
