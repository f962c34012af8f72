r"""The modes of the integrand along a unit's orbit: one, or two.

With ``x = e^t``, ``h'(t)`` is a quartic in ``x`` over ``x^2`` with one or three positive roots. For
an exponent whose origin is a critical point, the other roots are those of

.. math:: f(x) = A x^2 + C / x - E x - F, \qquad E = B - A, \quad F = D - C ,

which is convex and positive at the origin if that is a mode. By the inequality of the means
``A x^2 + C / x`` is at least ``3 (A C^2 / 4)^{1/3}`` and at least ``3 (A^2 C / 4)^{1/3} x``, half
of which may go to either. So there are no others where ``E_+^3 <= 27/32 A^2 C`` and
``F_+^3 <= 27/32 A C^2``, as for all but a few pairs; for those the minimum of ``f`` decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_perm.rescaling._exponent import Exponent

# Newton's steps from a start that is mostly close, and guarded ones from the ends of a bracket.
_FEW_STEPS, _MANY_STEPS = 2, 60
# How far from a mode, in standard deviations, it counts as found.
_CLOSE = 0.3
_STEPS_TO_MINIMUM = 40
_FINAL_STEPS, _SMALLEST_CURVATURE = 4, 1e-3


def find_modes(balanced: Exponent) -> tuple[Tensor, Exponent]:
    """A mode of each integrand, within a standard deviation, and the exponents moved there.

    :returns: shape ``(n,)``, and those of as many pairs.
    """
    bracket = balanced.bracket()
    low, high = bracket.aminmax(dim=0)
    mode = _mean_of_modes(balanced, bracket)
    for _ in range(_FEW_STEPS):
        slope, curvature, size = balanced.derivatives(mode)
        step = slope.div_(torch.maximum(curvature, size.mul_(0.5)))
        mode = torch.minimum(torch.maximum(step.add_(mode), low), high)
    moved = balanced.moved(mode)
    far = moved.slope().square_() > moved.curvature()
    if not bool(far.any()):
        return mode, moved
    mode[far] = _mode_within(balanced.take(far), low[far], high[far])
    return mode, balanced.moved(mode)


def find_second_modes(
    balanced: Exponent, modes: Tensor, moved: Exponent, depth: float
) -> tuple[Tensor, Tensor]:
    """Further modes that are less than ``depth`` below the first.

    :param modes: the first ones, shape ``(n,)``.
    :param moved: the exponents there.
    :returns: whose they are, shape ``(few,)``, and where.
    """
    alone = _has_no_other(moved)
    if bool(alone.all()):
        return modes[:0].long(), modes[:0]
    pair = (~alone).nonzero().squeeze(-1)
    some, first = balanced.take(pair), _polished(balanced.take(pair), modes[pair])
    # A critical point between the second mode and the minimum that parts it from the first.
    minimum, negative = _minimum(some.moved(first))
    between = first + minimum.log()
    low, high = some.bracket().aminmax(dim=0)
    left = torch.where(between < first, low, between)
    right = torch.where(between < first, between, high)
    second = _mode_within(some, left, right)
    slope, curvature, _ = some.derivatives(second)
    found = negative & (slope.square_() <= curvature)
    matters = found & (some.moved(first).rise(second - first) > -depth)
    return pair[matters], second[matters]


def highest_value(exponent: Exponent) -> Tensor:
    """``max_t h(t)``, shape ``(n,)``."""
    balanced, origin = exponent.balanced()
    first, moved = find_modes(balanced)
    pair, second = find_second_modes(balanced, first, moved, 0.0)
    first[pair] = second
    first = _polished(balanced, first)
    return balanced.moved(first).value().add_(first + origin, alpha=exponent.a)


def _polished(balanced: Exponent, modes: Tensor) -> Tensor:
    """Modes to many digits, from within a standard deviation of them."""
    for _ in range(_FINAL_STEPS):
        slope, curvature, _ = balanced.derivatives(modes)
        modes = modes + slope.div_(curvature.clamp_min_(_SMALLEST_CURVATURE))
    return modes


def _mean_of_modes(balanced: Exponent, bracket: Tensor) -> Tensor:
    """Of both parts, weighted by their curvatures."""
    powers = torch.stack([2 * bracket[0], -2 * bracket[1]])
    weights = powers.exp_().add_(1).mul_(balanced.squares)
    return (weights * bracket).sum(0).div_(weights.sum(0))


def _mode_within(exponent: Exponent, left: Tensor, right: Tensor) -> Tensor:
    """A mode between points where ``h`` rises and falls: Newton's method with bisection."""
    t = 0.5 * (left + right)
    for step in range(_MANY_STEPS):
        slope, curvature, _ = exponent.derivatives(t)
        found = slope.square() <= _CLOSE**2 * curvature
        if bool(found.all()):
            break
        left, right = torch.where(slope > 0, t, left), torch.where(slope > 0, right, t)
        newton = t + slope / curvature
        # Every third step bisects, so that slow steps of Newton's cannot last.
        good = (newton > left) & (newton < right) if step % 3 < 2 else torch.zeros_like(t).bool()
        t = torch.where(found, t, torch.where(good, newton, 0.5 * (left + right)))
    return t


def _has_no_other(exponent: Exponent) -> Tensor:
    """Whether the inequality of the means leaves no critical point but the origin."""
    squares, crosses, _ = exponent
    excess = (crosses - squares).clamp_min_(0)
    cubes = (excess * excess).mul_(excess)
    means = (squares * squares.prod(0)).mul_(27 / 32)
    return (cubes <= means).all(0)


def _minimum(exponent: Exponent) -> tuple[Tensor, Tensor]:
    """Where ``f`` is least, and whether it is negative there.

    ``f'`` rises and is concave: Newton's steps from below its root rise to it.
    """
    A, C = exponent.squares
    E, F = exponent.crosses - exponent.squares
    cube_root = (C / (2 * A)).pow(1 / 3)
    below_in, below_out = 0.5 * cube_root, (0.5 * C / -E).sqrt()
    x = torch.where(
        E > 0, torch.maximum(cube_root, E / (2 * A)), torch.minimum(below_in, below_out)
    )
    for _ in range(_STEPS_TO_MINIMUM):
        square = C / (x * x)
        x = x - (2 * A * x - E - square) / (2 * A + 2 * square / x)
    return x, A * x * x + C / x - E * x - F < 0
