"""Pooling and resampling, which mix places of a channel with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import SCALES, GradingRules, grading_rule

aten = torch.ops.aten


@grading_rule(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
@grading_rule(
    *(aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d),
    *(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d),
    gradings=[SCALES],
)
def pool(rules: GradingRules, x: Tensor, window: Sequence[int], *rest: Any) -> Tensor:
    """Means or maxima over neighbouring places, all of which have one degree.

    :param window: one number for each dimension of places.
    """
    return rules.common(x, range(-len(window), 0)).expand(rules.result_shapes[0])


@grading_rule(
    *(aten.max_pool2d_with_indices, aten.max_pool3d_with_indices),
    *(aten.adaptive_max_pool2d, aten.adaptive_max_pool3d),
    gradings=[SCALES],
)
def pool_with_places(
    rules: GradingRules, x: Tensor, window: Sequence[int], *rest: Any
) -> tuple[Tensor, Tensor]:
    """Maxima over neighbouring places, and where they are."""
    return pool(rules, x, window), rules.invariant(1)


@grading_rule(
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
    *(aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d),
    gradings=[SCALES],
)
def resample(rules: GradingRules, x: Tensor, size: Sequence[int], *rest: Any) -> Tensor:
    """Interpolation between places, all of which have one degree."""
    return pool(rules, x, size)
