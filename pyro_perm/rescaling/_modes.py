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
# From within a standard deviation of the mode to its value.
_FINAL_STEPS = 4


def find_modes(balanced: Exponent) -> Tensor:
    """A mode of each integrand, within a standard deviation, shape ``(n,)``."""
    incoming, outgoing = balanced.bracket()
    low, high = torch.minimum(incoming, outgoing), torch.maximum(incoming, outgoing)
    mode = _mean_of_modes(balanced, incoming, outgoing)
    for _ in range(_FEW_STEPS):
        slope, curvature, size = balanced.derivatives(mode)
        step = slope.div_(torch.maximum(curvature, size.mul_(0.5)))
        mode = torch.minimum(torch.maximum(mode.add_(step), low), high)
    slope, curvature, _ = balanced.derivatives(mode)
    far = slope.square_() > curvature
    if bool(far.any()):
        mode[far] = _mode_within(balanced.take(far), low[far], high[far])
    return mode


def find_second_modes(balanced: Exponent, modes: Tensor, depth: float) -> tuple[Tensor, Tensor]:
    """Further modes that are less than ``depth`` below the first.

    :param modes: the first ones, shape ``(n,)``.
    :returns: whose they are, shape ``(few,)``, and where.
    """
    here = balanced.moved(modes)
    pair = (~_has_no_other(here)).nonzero().squeeze(-1)
    if len(pair):
        # A critical point between the second mode and the minimum that parts it from the first.
        minimum, negative = _minimum(here.take(pair))
        pair, between = pair[negative], modes[pair[negative]] + minimum[negative].log()
    if not len(pair):
        return pair, modes[:0]
    some, first = balanced.take(pair), modes[pair]
    incoming, outgoing = some.bracket()
    left = torch.where(between < first, torch.minimum(incoming, outgoing), between)
    right = torch.where(between < first, between, torch.maximum(incoming, outgoing))
    second = _mode_within(some, left, right)
    rise = some.moved(first).rise(second - first)
    matters = rise > -depth
    return pair[matters], second[matters]


def highest_value(exponent: Exponent) -> Tensor:
    """``max_t h(t)``, shape ``(n,)``."""
    balanced, origin = exponent.balanced()
    first = find_modes(balanced)
    pair, second = find_second_modes(balanced, first, 0.0)
    first[pair] = second
    for _ in range(_FINAL_STEPS):
        slope, curvature, _ = balanced.derivatives(first)
        first.add_(slope.div_(curvature.clamp_min_(1.0)))
    return balanced.moved(first).value().add_(first + origin, alpha=exponent.a)


def _mean_of_modes(balanced: Exponent, incoming: Tensor, outgoing: Tensor) -> Tensor:
    """Of both parts, weighted by their curvatures."""
    weight_in = (2 * incoming).exp_().add_(1).mul_(balanced.A)
    weight_out = (-2 * outgoing).exp_().add_(1).mul_(balanced.C)
    total = weight_in + weight_out
    return weight_in.mul_(incoming).addcmul_(weight_out, outgoing).div_(total)


def _mode_within(exponent: Exponent, left: Tensor, right: Tensor) -> Tensor:
    """A mode between points where ``h`` rises and falls: Newton's method with bisection."""
    t = 0.5 * (left + right)
    for step in range(_MANY_STEPS):
        slope, curvature, _ = exponent.derivatives(t)
        if bool((slope.square() <= _CLOSE**2 * curvature).all()):
            break
        left, right = torch.where(slope > 0, t, left), torch.where(slope > 0, right, t)
        newton = t + slope / curvature
        # Every third step bisects, so that slow steps of Newton's cannot last.
        good = (newton > left) & (newton < right) if step % 3 < 2 else torch.zeros_like(t).bool()
        t = torch.where(good, newton, 0.5 * (left + right))
    return t


def _has_no_other(exponent: Exponent) -> Tensor:
    """Whether the inequality of the means leaves no critical point but the origin."""
    A, B, C, D, _ = exponent
    mean = (A * C).mul_(27 / 32)
    excess_in, excess_out = (B - A).clamp_min_(0), (D - C).clamp_min_(0)
    cube_in = (excess_in * excess_in).mul_(excess_in)
    cube_out = (excess_out * excess_out).mul_(excess_out)
    return (cube_in <= mean * A).logical_and_(cube_out <= mean.mul_(C))


def _minimum(exponent: Exponent) -> tuple[Tensor, Tensor]:
    """Where ``f`` is least, and whether it is negative there.

    ``f'`` rises and is concave: Newton's steps from below its root rise to it.
    """
    A, C = exponent.A, exponent.C
    E, F = exponent.B - A, exponent.D - C
    cube_root = (C / (2 * A)).pow(1 / 3)
    below_in, below_out = 0.5 * cube_root, (0.5 * C / -E).sqrt()
    x = torch.where(
        E > 0, torch.maximum(cube_root, E / (2 * A)), torch.minimum(below_in, below_out)
    )
    for _ in range(_STEPS_TO_MINIMUM):
        square = C / (x * x)
        x = x - (2 * A * x - E - square) / (2 * A + 2 * square / x)
    return x, A * x * x + C / x - E * x - F < 0
