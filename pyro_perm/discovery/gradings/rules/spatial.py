"""Pooling and resampling, which mix places of a channel with their neighbours."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import SCALES, GradingRules, grading_rule
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


_NUM_PLACES = re.compile(r"(\d)d")


@grading_rule(
    *(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d),
    *operators("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
    *(aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d),
)
def average(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """Weighted means of neighbouring places, all of which have one degree."""
    (num_places,) = _NUM_PLACES.findall(rules.operation)
    return rules.common(x, range(-int(num_places), 0)).expand(rules.result_shapes[0])


@grading_rule(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, gradings=[SCALES])
def largest(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """Maxima over neighbouring places, all of which have one degree."""
    return average(rules, x)


@grading_rule(
    *(aten.max_pool2d_with_indices, aten.max_pool3d_with_indices),
    *(aten.adaptive_max_pool2d, aten.adaptive_max_pool3d),
    gradings=[SCALES],
)
def largest_with_places(rules: GradingRules, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Maxima over neighbouring places, and where they are."""
    return average(rules, x), rules.invariant(1)
