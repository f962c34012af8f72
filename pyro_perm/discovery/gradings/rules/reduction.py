"""Sums, norms and extremes along dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import SCALES, SIGNS, GradingRules, grading_rule

aten = torch.ops.aten


def reduced(
    rules: GradingRules, x: Tensor, dims: int | Sequence[int] | None, keepdim: bool
) -> Tensor:
    """One degree for all entries along some dimensions, or along all of them."""
    each = [dims] if isinstance(dims, int) else list(dims or range(x.dim()))
    found = rules.common(x, each)
    return found if keepdim or not x.dim() else found.squeeze(each)


@grading_rule(aten.sum.default, aten.mean.default)
def total(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """The sum of all entries."""
    return reduced(rules, x, None, keepdim=False)


@grading_rule(aten.sum.dim_IntList, aten.mean.dim)
def sum_along(
    rules: GradingRules, x: Tensor, dims: list[int] | None, keepdim: bool = False, *rest: Any
) -> Tensor:
    """The sum along some dimensions."""
    return reduced(rules, x, dims, keepdim)


@grading_rule(aten.cumsum)
def running_sum(rules: GradingRules, x: Tensor, dim: int, *rest: Any) -> Tensor:
    """The sums of the first entries along a dimension."""
    return rules.common(x, dim).expand(x.shape)


@grading_rule(aten.linalg_vector_norm, gradings=[SIGNS])
def norm_of_signs(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """A vector norm, which is even in every entry."""
    return rules.invariant()


@grading_rule(aten.linalg_vector_norm, gradings=[SCALES])
def norm(
    rules: GradingRules, x: Tensor, order: float, dims: list[int] | None, keepdim: bool, *rest: Any
) -> Tensor:
    """A vector norm; that of order zero counts."""
    if order == 0:
        rules.refuse(x)
    return reduced(rules, x, dims, keepdim)


@grading_rule(aten.var.correction)
def variance(
    rules: GradingRules, x: Tensor, dims: list[int] | None, correction: Any, keepdim: bool
) -> Tensor:
    """The variance of entries of one degree."""
    return rules.power(reduced(rules, x, dims, keepdim), 2)


@grading_rule(aten.std.correction, gradings=[SIGNS])
def deviation_of_signs(
    rules: GradingRules, x: Tensor, dims: list[int] | None, *rest: Any
) -> Tensor:
    """The standard deviation of entries that flip alike."""
    rules.common(x, dims or range(x.dim()))
    return rules.invariant()


@grading_rule(aten.std.correction, gradings=[SCALES])
def deviation(
    rules: GradingRules, x: Tensor, dims: list[int] | None, correction: Any, keepdim: bool
) -> Tensor:
    """The standard deviation of entries of one degree."""
    return reduced(rules, x, dims, keepdim)


@grading_rule(aten.amax, aten.amin, gradings=[SCALES])
def extremum(
    rules: GradingRules, x: Tensor, dims: list[int] | None = None, keepdim: bool = False
) -> Tensor:
    """The largest or the smallest entry along some dimensions."""
    return reduced(rules, x, dims, keepdim)


@grading_rule(aten.max.default, aten.min.default, gradings=[SCALES])
def extremum_of_all(rules: GradingRules, x: Tensor) -> Tensor:
    """The largest or the smallest entry."""
    return reduced(rules, x, None, keepdim=False)


@grading_rule(aten.max.dim, aten.min.dim, gradings=[SCALES])
def extremum_and_place(
    rules: GradingRules, x: Tensor, dim: int, keepdim: bool
) -> tuple[Tensor, Tensor]:
    """The largest or the smallest entry along a dimension, and where it is."""
    return reduced(rules, x, dim, keepdim), rules.invariant(1)
