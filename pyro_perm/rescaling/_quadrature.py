"""Integrals of many pairs at once: expansions of the sharp ones, and sums over nodes."""

from __future__ import annotations

import math

import numpy as np

from pyro_perm.rescaling._arrays import Array, empty, namespace
from pyro_perm.rescaling._exponent import Exponent, powers
from pyro_perm.rescaling._laplace import are_sharp, expand
from pyro_perm.rescaling._modes import find_modes
from pyro_perm.rescaling._nodes import sum_nodes
from pyro_perm.rescaling._windows import find_windows

# Pairs that are integrated at once: their temporaries should stay in a processor's cache.
_PAIRS_AT_ONCE = 4096
# By how much less than asked for is left out, for what is left out adds up.
_MARGIN = math.log(4)


def integrate(exponent: Exponent, tolerance: float) -> tuple[Array, Array]:
    """Log-integrals, shape ``(n,)``, and means as of ``OrbitIntegral``, shape ``(4, n)``.

    :raises ValueError: where an integral diverges or a coefficient is not a number, or if the
        tolerance is not between 0 and 0.1.
    """
    if not 0 < tolerance < 0.1:
        raise ValueError(f"tolerance must lie between 0 and 0.1, got {tolerance}")
    if not len(exponent):
        return empty((0,), exponent.squares), empty((4, 0), exponent.squares)
    xp = namespace(exponent.squares)
    with np.errstate(all="ignore"):
        chunks = [_integrate(some, tolerance) for some in exponent.chunks(_PAIRS_AT_ONCE)]
        log_integrals, means = chunks[0]
        if len(chunks) > 1:
            log_integrals = xp.concatenate([value for value, _ in chunks])
            means = xp.concatenate([mean for _, mean in chunks], 1)
    exponent.require_integrals(log_integrals)
    return log_integrals, means


def bound(exponent: Exponent) -> Array:
    """Upper bounds of the log-integrals in nats, shape ``(n,)``, at the cost of a few operations.

    Relative to the origin with ``A - C = a``, the parts of incoming and outgoing entries have their
    maxima ``P`` at ``asinh(B / 2A)`` and ``R`` at ``-asinh(D / 2C)``, and
    ``h(t) <= P + R - A (e^x - 1 - x)`` for the distance ``x`` from the first, likewise from the
    second. The integral of the right-hand side is ``Gamma(A) (e / A)^A <= 1 / A + sqrt(2 pi / A)``.
    """
    bounds = empty((len(exponent),), exponent.squares)
    start = 0
    with np.errstate(all="ignore"):
        for some in exponent.chunks(_PAIRS_AT_ONCE):
            bounds[start : start + len(some)] = _bound(some)
            start += len(some)
    return bounds


def _bound(exponent: Exponent) -> Array:
    xp = namespace(exponent.squares)
    balanced, origin = exponent.balance()
    modes = balanced.bracket()
    modes[1] *= -1
    tops = xp.exp(modes)
    tops *= balanced.crosses
    tops -= balanced.squares
    tops *= 0.5
    modes *= balanced.squares
    tops += modes
    width = 1 / xp.maximum(balanced.squares[0], balanced.squares[1])
    log_width = xp.log(width + xp.sqrt(2 * math.pi * width))
    return tops[0] + tops[1] + log_width + exponent.a * origin


def _integrate(exponent: Exponent, tolerance: float) -> tuple[Array, Array]:
    balanced, origin = exponent.balance()
    modes, moved = find_modes(balanced)
    sharp = are_sharp(moved, tolerance)
    if bool(sharp.all()):
        value, means, place = expand(moved, modes)
    elif not bool(sharp.any()):
        value, means, place = _sum_nodes(balanced, modes, moved, tolerance)
    else:
        value, place, means = (empty((*k, len(exponent)), modes) for k in ((), (), (2, 2)))
        value[sharp], means[..., sharp], place[sharp] = expand(moved.take(sharp), modes[sharp])
        rest = balanced.take(~sharp), modes[~sharp], moved.take(~sharp)
        value[~sharp], means[..., ~sharp], place[~sharp] = _sum_nodes(*rest, tolerance)
    place = place + origin
    value += exponent.a * place
    means *= _means_at(place)
    return value, means.reshape(4, -1)


def _sum_nodes(
    balanced: Exponent, modes: Array, moved: Exponent, tolerance: float
) -> tuple[Array, Array, Array]:
    """By nodes; what is returned is as of ``expand``."""
    windows = find_windows(balanced, modes, moved, _MARGIN - math.log(tolerance))
    sums = sum_nodes(windows)
    value, means = sums.log_integral + windows.exponent.value(), sums.means
    if windows.pair is None:
        return value, means, windows.anchor
    value += balanced.a * windows.anchor
    means *= _means_at(windows.anchor)
    return *_sum_of_windows(value, means, windows.pair, len(balanced)), 0 * modes


def _means_at(t: Array) -> Array:
    """``e^{2t}`` and ``e^t``, ``e^{-2t}`` and ``e^{-t}``, shape ``(2, 2, n)``."""
    x = powers(t)
    return namespace(x).stack([x * x, x], 1)


def _sum_of_windows(value: Array, means: Array, pair: Array, num_pairs: int) -> tuple[Array, Array]:
    """Of pairs that have one window, and of those whose second one follows behind."""
    xp = namespace(value)
    first, second = value[:num_pairs], value[num_pairs:]
    several = pair[num_pairs:]
    largest = xp.maximum(first[several], second)
    weights = xp.exp(first[several] - largest), xp.exp(second - largest)
    total = weights[0] + weights[1]
    first[several] = largest + xp.log(total)
    mixed = means[..., several] * weights[0] + means[..., num_pairs:] * weights[1]
    means = means[..., :num_pairs]
    means[..., several] = mixed / total
    return first, means
