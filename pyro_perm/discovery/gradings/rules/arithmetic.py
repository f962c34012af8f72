"""Sums, products and choices of tensors that broadcast against each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.pointwise import reciprocal
from pyro_perm.discovery.gradings.rules.table import SCALES, GradingRules, grading_rule

aten = torch.ops.aten


@grading_rule(aten.mul.Tensor, aten.mul.Scalar)
def multiply(rules: GradingRules, x: Tensor, y: Tensor | float) -> Tensor:
    """``x * y``."""
    return rules.product(x, rules.of(y))


@grading_rule(aten.div.Tensor, aten.div.Scalar)
def divide(rules: GradingRules, x: Tensor, y: Tensor | float) -> Tensor:
    """``x / y``."""
    return rules.product(x, reciprocal(rules, rules.of(y)))


@grading_rule(
    *(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar),
    *(aten.rsub.Tensor, aten.rsub.Scalar),
)
def add(rules: GradingRules, x: Tensor, y: Tensor | float, alpha: float = 1) -> Tensor:
    """``x + alpha y``."""
    return rules.together(x, rules.of(y))


@grading_rule(aten.maximum, aten.minimum, gradings=[SCALES])
def extremum(rules: GradingRules, x: Tensor, y: Tensor) -> Tensor:
    """The larger or the smaller of two."""
    return rules.together(x, y)


@grading_rule(aten.where.self)
def where(rules: GradingRules, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """One of two, as a third tells."""
    rules.refuse(condition)
    return rules.together(x, y).expand(rules.result_shapes[0])


@grading_rule(aten.masked_fill.Scalar)
def masked_fill(rules: GradingRules, x: Tensor, mask: Tensor, value: float) -> Tensor:
    """A number in some places."""
    return where(rules, mask, rules.of(value), x)


@grading_rule(aten.copy)
def copy(rules: GradingRules, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
    """Overwriting every entry with those of another tensor."""
    return y.expand(x.shape)


@grading_rule(aten.zero, aten.fill.Scalar)
def fill(rules: GradingRules, x: Tensor, value: float = 0) -> Tensor:
    """Overwriting every entry with one number."""
    return rules.of(value).expand(x.shape)
