r"""The modes of the integrand along a unit's orbit: one, or two.

With ``x = e^t``, ``h'(t)`` is a quartic in ``x`` over ``x^2`` with one or three positive roots. For
an exponent whose origin is a critical point, the other roots are those of

.. math:: f(x) = A x^2 + C / x - E x - F, \qquad E = B - A, \quad F = D - C ,

which is convex. By the inequality of the means ``A x^2 + C / x`` is at least
``3 (A C^2 / 4)^{1/3}`` and at least ``3 (A^2 C / 4)^{1/3} x``, half of which may go to either. So
there are no others where ``E_+^3 <= 27/32 A^2 C`` and ``F_+^3 <= 27/32 A C^2``, as for all but a
few pairs. For those the slope of ``h`` at the minimum of ``f`` decides.
"""

from __future__ import annotations

import numpy as np

from pyro_perm.rescaling._arrays import Array, both, namespace, positions
from pyro_perm.rescaling._exponent import Exponent

# Newton's steps from a start that is mostly close, and guarded ones from the ends of a bracket.
_FEW_STEPS, _MANY_STEPS = 2, 60
# How far from a mode, in standard deviations, it counts as found.
_CLOSE, _VERY_CLOSE = 0.3, 0.1
_STEPS_TO_MINIMUM = 7
_FINAL_STEPS, _SMALLEST_CURVATURE = 4, 1e-3


def find_modes(balanced: Exponent) -> tuple[Array, Exponent]:
    """A mode of each integrand, within a standard deviation, and the exponents moved there.

    :returns: shape ``(n,)``, and those of as many pairs.
    """
    xp = namespace(balanced.squares)
    bracket = balanced.bracket()
    low, high = _sort(bracket)
    mode = _mean_of_modes(balanced, bracket)
    for _ in range(_FEW_STEPS):
        slope, curvature, size = balanced.derivatives(mode)
        if bool((slope * slope <= _VERY_CLOSE**2 * curvature).all()):
            break
        step = slope / xp.maximum(curvature, 0.5 * size)
        mode = xp.minimum(xp.maximum(mode + step, low), high)
    moved = balanced.move(mode)
    slope = moved.slope()
    far = slope * slope > moved.curvature()
    if not bool(far.any()):
        return mode, moved
    mode[far] = _mode_within(balanced.take(far), low[far], high[far])
    return mode, balanced.move(mode)


def find_second_modes(
    balanced: Exponent, modes: Array, moved: Exponent, depth: float
) -> tuple[Array, Array]:
    """Further modes that are less than ``depth`` below the first.

    :param modes: the first ones, shape ``(n,)``.
    :param moved: the exponents there.
    :returns: whose they are, shape ``(few,)``, and where.
    """
    xp = namespace(modes)
    whose = positions(~have_no_other(moved))
    if len(whose):
        # Where the second mode and the valley before the first have a point between them.
        between = modes[whose] + xp.log(_minimum(moved.take(whose)))
        slope, _, _ = balanced.take(whose).derivatives(between)
        valley = slope * (between - modes[whose]) > 0
        whose, between = whose[valley], between[valley]
    if not len(whose):
        return whose, modes[:0]
    some, first = balanced.take(whose), modes[whose]
    low, high = _sort(some.bracket())
    left = xp.where(between < first, low, between)
    right = xp.where(between < first, between, high)
    second = _mode_within(some, left, right)
    matters = moved.take(whose).rise(second - first) > -depth
    return whose[matters], second[matters]


def highest_value(exponent: Exponent) -> Array:
    """``max_t h(t)``, shape ``(n,)``."""
    with np.errstate(all="ignore"):
        balanced, origin = exponent.balance()
        mode, moved = find_modes(balanced)
        whose, second = find_second_modes(balanced, mode, moved, 0.0)
        mode[whose] = second
        xp = namespace(mode)
        for _ in range(_FINAL_STEPS):
            slope, curvature, _ = balanced.derivatives(mode)
            mode += slope / xp.clip(curvature, _SMALLEST_CURVATURE, None)
        return balanced.move(mode).value() + exponent.a * (mode + origin)


def _sort(bracket: Array) -> tuple[Array, Array]:
    xp = namespace(bracket)
    return xp.minimum(bracket[0], bracket[1]), xp.maximum(bracket[0], bracket[1])


def _mean_of_modes(balanced: Exponent, bracket: Array) -> Array:
    """Of both parts, weighted by their curvatures."""
    xp = namespace(bracket)
    weights = xp.exp(both(2 * bracket[0], -2 * bracket[1]))
    weights += 1
    weights *= balanced.squares
    terms = weights * bracket
    return (terms[0] + terms[1]) / (weights[0] + weights[1])


def _mode_within(exponent: Exponent, left: Array, right: Array) -> Array:
    """A mode between points where ``h`` rises and falls: Newton's method with bisection."""
    xp = namespace(left)
    t = 0.5 * (left + right)
    for step in range(_MANY_STEPS):
        slope, curvature, _ = exponent.derivatives(t)
        found = slope * slope <= _CLOSE**2 * curvature
        if bool(found.all()):
            break
        left, right = xp.where(slope > 0, t, left), xp.where(slope > 0, right, t)
        new = 0.5 * (left + right)
        if step % 3 < 2:  # Every third step bisects, so that slow steps of Newton's cannot last.
            newton = t + slope / curvature
            new = xp.where((newton > left) & (newton < right), newton, new)
        t = xp.where(found, t, new)
    return t


def have_no_other(exponent: Exponent, share: float = 1.0) -> Array:
    """Whether the inequality of the means leaves no critical point but the origin.

    :param share: of both terms of ``f`` that are not linear, what may cancel at most.
    """
    squares, crosses, _ = exponent
    excess = namespace(squares).clip(crosses - squares, 0, None)
    means = squares * (27 / 32 * share**3 * squares[0] * squares[1])
    few = excess * excess * excess <= means
    return few[0] & few[1]


def _minimum(exponent: Exponent) -> Array:
    """Where ``f`` is least.

    ``f'`` rises and is concave: Newton's steps rise to its root from below, where they start within
    a factor of three.
    """
    xp = namespace(exponent.squares)
    A, C = exponent.squares
    E = exponent.crosses[0] - A
    cube_root = (C / (2 * A)) ** (1 / 3)
    near_in, near_out = xp.maximum(cube_root, E / (2 * A)), xp.sqrt(0.5 * C / -E)
    x = xp.where(E > 0, near_in, xp.minimum(0.5 * cube_root, near_out))
    for _ in range(_STEPS_TO_MINIMUM):
        square = C / (x * x)
        x = x - (2 * A * x - E - square) / (2 * A + 2 * square / x)
    return x
