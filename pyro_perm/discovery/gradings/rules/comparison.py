"""Comparisons and places of extremes, which do not change if all is scaled alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import SCALES, GradingRules, grading_rule

aten = torch.ops.aten


@grading_rule(
    *(aten.gt.Tensor, aten.ge.Tensor, aten.lt.Tensor, aten.le.Tensor),
    *(aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar),
    *(aten.eq.Tensor, aten.ne.Tensor, aten.eq.Scalar, aten.ne.Scalar),
    gradings=[SCALES],
)
def compare(rules: GradingRules, x: Tensor, y: Tensor | float) -> Tensor:
    """Which of two is larger, or whether they are equal."""
    rules.together(x, rules.of(y))
    return rules.invariant()


@grading_rule(aten.argmax, aten.argmin, gradings=[SCALES])
def place(rules: GradingRules, x: Tensor, dim: int | None, *rest: Any) -> Tensor:
    """Where an extreme entry is."""
    rules.common(x, range(x.dim()) if dim is None else dim)
    return rules.invariant()


@grading_rule(aten.sort.default, aten.sort.stable, aten.topk, gradings=[SCALES])
def order(rules: GradingRules, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The entries along a dimension in order, or the largest ones, and their places."""
    dim = rest[1] if rules.operation in ("aten.topk", "aten.sort.stable") else rest[0]
    values = rules.common(x, dim).expand(rules.result_shapes[0])
    return values, rules.invariant(1)
