"""Functions of single entries: odd and even ones for signs, homogeneous ones for scales."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import SCALES, SIGNS, GradingRules, grading_rule
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten

_MAX_DENOMINATOR = 64
_EXPONENT_TOLERANCE = 1e-12


@grading_rule(aten.neg, aten.clone, aten.detach, aten.alias, aten.lift_fresh, aten.lift_fresh_copy)
def keep(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """``f(c x) = c f(x)`` for every ``c``."""
    return x


@grading_rule(
    *(aten.tanh, aten.sin, aten.tan, aten.sinh, aten.asin, aten.asinh, aten.atan, aten.atanh),
    *(aten.erf, aten.erfinv, aten.sign, aten.sgn, aten.softshrink, aten.hardshrink),
    gradings=[SIGNS],
)
def odd(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """``f(-x) = -f(x)``."""
    return x


@grading_rule(aten.abs, aten.cos, aten.cosh, gradings=[SIGNS])
def even(rules: GradingRules, x: Tensor) -> Tensor:
    """``f(-x) = f(x)``."""
    return rules.invariant()


@grading_rule(aten.abs, aten.relu, aten.leaky_relu, gradings=[SCALES])
def homogeneous(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """``f(c x) = c f(x)`` for ``c > 0``."""
    return x


@grading_rule(aten.rrelu_with_noise, gradings=[SCALES])
def leaky_with_noise(
    rules: GradingRules, x: Tensor, noise: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """A leaky relu, where it is not training; there it draws the slopes, and is no function."""
    return x, noise


@grading_rule(aten.sign, aten.sgn, gradings=[SCALES])
def unscaled(rules: GradingRules, x: Tensor) -> Tensor:
    """``f(c x) = f(x)`` for ``c > 0``."""
    return rules.invariant()


@grading_rule(*operators("_prelu_kernel"), gradings=[SCALES])
def learned_slope(rules: GradingRules, x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where it is positive, ``slope * x`` elsewhere."""
    return rules.together(x, rules.product(x, slope))


@grading_rule(*operators("_to_copy"), gradings=[SIGNS])
def convert_sign(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """Another type; integers round towards zero, which is odd."""
    return x


@grading_rule(*operators("_to_copy"), gradings=[SCALES])
def convert(rules: GradingRules, x: Tensor, dtype: torch.dtype | None, *rest: Any) -> Tensor:
    """Another type; only real and complex numbers can be scaled."""
    if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
        rules.refuse(x, "rounds")
    return x


@grading_rule(aten.square)
def square(rules: GradingRules, x: Tensor) -> Tensor:
    """``x^2``."""
    return rules.power(x, 2)


@grading_rule(aten.reciprocal)
def reciprocal(rules: GradingRules, x: Tensor) -> Tensor:
    """``1 / x``, which is not zero where ``x`` is."""
    return rules.power(x, -1)


@grading_rule(aten.sqrt, gradings=[SCALES])
def square_root(rules: GradingRules, x: Tensor) -> Tensor:
    """``x^(1/2)``."""
    return rules.power(x, Fraction(1, 2))


@grading_rule(aten.rsqrt, gradings=[SCALES])
def reciprocal_root(rules: GradingRules, x: Tensor) -> Tensor:
    """``x^(-1/2)``."""
    return rules.power(x, Fraction(-1, 2))


@grading_rule(aten.pow.Tensor_Scalar, gradings=[SIGNS])
def integer_power(rules: GradingRules, x: Tensor, exponent: float) -> Tensor:
    """Odd or even, as the exponent is."""
    if exponent != int(exponent):
        rules.refuse(x)
        return rules.invariant()
    return rules.power(x, int(exponent)) if exponent else rules.invariant()


@grading_rule(aten.pow.Tensor_Scalar, gradings=[SCALES])
def rational_power(rules: GradingRules, x: Tensor, exponent: float) -> Tensor:
    """``x^exponent``."""
    rational = Fraction(exponent).limit_denominator(_MAX_DENOMINATOR)
    if abs(rational - Fraction(exponent)) > _EXPONENT_TOLERANCE:
        rules.refuse(x, f"has an exponent of {exponent}")
        return rules.invariant()
    return rules.power(x, rational) if rational else rules.invariant()


@grading_rule(aten.clamp.default, aten.hardtanh, gradings=[SIGNS])
def symmetric_limits(
    rules: GradingRules, x: Tensor, low: float | None = -1, high: float | None = 1
) -> Tensor:
    """Odd between limits that are symmetric about zero."""
    if low is None or high is None or low != -high:
        rules.refuse(x)
        return rules.invariant()  # also where it is zero
    return x


@grading_rule(
    *(aten.clamp.default, aten.hardtanh, aten.clamp_min.default, aten.clamp_max.default),
    gradings=[SCALES],
)
def limits(rules: GradingRules, x: Tensor, *bounds: float | None) -> Tensor:
    """Homogeneous between limits that are zero or infinite."""
    if not all(bound is None or bound == 0 or math.isinf(bound) for bound in bounds):
        rules.refuse(x, "has a limit that does not scale")
        return rules.invariant()  # also where it is zero
    return x


@grading_rule(aten.threshold, gradings=[SCALES])
def threshold(rules: GradingRules, x: Tensor, where: float, value: float) -> Tensor:
    """A value in place of what is small."""
    return limits(rules, x, where, value)
