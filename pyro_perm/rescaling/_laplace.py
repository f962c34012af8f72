r"""Laplace's method with two corrections, for integrands along orbits that are sharp.

With the derivatives of ``h`` at its mode, ``k = -h''`` and
:math:`\lambda_m = h^{(m)} / k^{m / 2}`,

.. math:: \log \int e^h = h + \tfrac12 \log \tfrac{2 \pi}{k}
    + \tfrac{\lambda_4}{8} + \tfrac{5 \lambda_3^2}{24} + \tfrac{\lambda_6}{48}
    + \tfrac{7 \lambda_3 \lambda_5}{48} + \tfrac{\lambda_4^2}{12}
    + \tfrac{25 \lambda_3^2 \lambda_4}{48} + \tfrac{5 \lambda_3^4}{16} + O(k^{-3}),

and means of powers of ``e^t`` follow from the first cumulants of ``t``. With ``e`` the larger of
``lambda_3^2`` and ``|lambda_4|``, the error was below ``e^3 / 10``, and that of the means relative
to them below ``1.3 e^3``, on 300,000 integrands of all kinds that have no second mode. (For the
gamma function, ``h = k (t - e^t)``, it is ``e^3 / 360``.) Wide layers have sharp integrands: a unit
with hundreds of entries that is switched off has ``e = 4 / k`` of some thousandths.
"""

from __future__ import annotations

import math

from pyro_perm.rescaling._arrays import Array, namespace
from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._modes import have_no_other

# The tolerance over e^3: twice the error of the log-integral; means err by up to seven times the
# the tolerance.
_ERROR = 0.2
# Newton's steps to the mode until it is within this share of a standard deviation.
_STEPS, _CLOSE = 5, 1e-4
# How far ``f`` must stay above zero: this share of its terms, see ``_modes``.
_ONE_MODE = 0.5


def are_sharp(moved: Exponent, tolerance: float) -> Array:
    """Where the expansion is as accurate as asked for, shape ``(n,)``.

    :param moved: exponents with their origins near a mode.
    """
    curvature, third, fourth = moved.curvature(), _derivative(moved, 3), _derivative(moved, 4)
    largest = (tolerance / _ERROR) ** (1 / 3) * curvature * curvature
    is_sharp = (third * third <= largest * curvature) & (abs(fourth) <= largest)
    return is_sharp & have_no_other(moved, _ONE_MODE) if bool(is_sharp.any()) else is_sharp


def expand(moved: Exponent, modes: Array) -> tuple[Array, Array, Array]:
    """Log-integrals of sharp integrands.

    :param moved: exponents with their origins near the modes.
    :param modes: these origins, shape ``(n,)``.
    :returns: log-integrals without ``a`` times the place; means of ``e^{2t}`` and ``e^t``, then of
        ``e^{-2t}`` and ``e^{-t}``, relative to the place, shape ``(2, 2, n)``; and the place, which
        is that of the mode.
    """
    xp = namespace(modes)
    moved, modes = _polish(moved, modes)
    variance = 1 / moved.curvature()
    deviation = xp.sqrt(variance)
    shift = moved.slope() * deviation
    power = variance * deviation
    l3 = _derivative(moved, 3) * power
    l4 = _derivative(moved, 4) * variance * variance
    l5 = _derivative(moved, 5) * variance * power
    l6 = _derivative(moved, 6) * power * power
    square = l3 * l3
    value = moved.value() + 0.5 * xp.log(2 * math.pi * variance)
    value += shift * (shift + l3) / 2
    value += l4 / 8 + 5 / 24 * square + (l6 + 7 * l3 * l5) / 48
    value += l4 * (l4 / 12 + 25 / 48 * square) + 5 / 16 * square * square
    first = shift + l3 / 2 + l5 / 8 + l3 * (2 / 3 * l4 + 5 / 8 * square)
    first *= deviation
    second = variance * (1 + l4 / 2 + square)
    third = l3 * power
    once, twice = second / 2, 2 * second
    logs = (twice, 2 * first + 4 / 3 * third, once, first + third / 6)
    return value, _means(*logs), modes


def _means(twice: Array, twice_odd: Array, once: Array, once_odd: Array) -> Array:
    """From the even and the odd parts of the logarithms of the means."""
    stack = namespace(once).stack
    odd = stack([twice_odd, once_odd])
    return namespace(once).exp(stack([twice, once]) + stack([odd, -odd]))


def _polish(moved: Exponent, modes: Array) -> tuple[Exponent, Array]:
    """Closer to the modes."""
    for _ in range(_STEPS):
        slope, curvature = moved.slope(), moved.curvature()
        if bool((slope * slope <= _CLOSE**2 * curvature).all()):
            break
        step = slope / curvature
        moved, modes = moved.move(step), modes + step
    return moved, modes


def _derivative(moved: Exponent, order: int) -> Array:
    """``h^(m)(0)`` for ``m > 1``."""
    terms = moved.crosses - 2 ** (order - 1) * moved.squares
    return terms[0] - terms[1] if order % 2 else terms[0] + terms[1]
