"""The trapezoidal rule over the windows of many integrands at once."""

from __future__ import annotations

import math
from typing import NamedTuple

from pyro_perm.rescaling._arrays import Array, both, empty, namespace, numbers, positions
from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._windows import Windows

_SMALLEST_RULE = 16
# Entries of a temporary that stays in a processor's cache.
_BLOCK = 20_000


class NodeSums(NamedTuple):
    """Sums over the nodes of each window, relative to its anchor.

    Attributes:
        log_integral: its share of the integral, relative to the integrand at the anchor.
        means: means of ``e^{2t}`` and ``e^t``, then of ``e^{-2t}`` and ``e^{-t}``, shape
            ``(2, 2, windows)``.
    """

    log_integral: Array
    means: Array


def sum_nodes(windows: Windows) -> NodeSums:
    """Sum each window over as many nodes as it needs, those of like numbers at once."""
    largest = float(windows.num_nodes.max())
    if not math.isfinite(largest):
        # Not a number where the integrand has no window; for the others nobody will ask.
        nothing = windows.num_nodes * 0
        return NodeSums(nothing, namespace(nothing).stack([nothing] * 4).reshape(2, 2, -1))
    num_nodes, fewer = _SMALLEST_RULE, 0
    size = len(windows.anchor)
    if largest <= num_nodes and size * num_nodes <= _BLOCK:
        return _trapezoid(windows.exponent, windows.left, windows.right, num_nodes)
    sums = NodeSums(empty((size,), windows.anchor), empty((2, 2, size), windows.anchor))
    while fewer < largest:
        where = positions((windows.num_nodes > fewer) & (windows.num_nodes <= num_nodes))
        block = max(_BLOCK // num_nodes, 1)
        for start in range(0, len(where), block):
            some = where[start : start + block]
            part = windows.take(some)
            summed = _trapezoid(part.exponent, part.left, part.right, num_nodes)
            sums.log_integral[some] = summed.log_integral
            sums.means[:, :, some] = summed.means
        fewer, num_nodes = num_nodes, _next_rule(num_nodes)
    return sums


def _next_rule(num_nodes: int) -> int:
    """The rules have 16, 24, 32, 48 nodes and so on."""
    return num_nodes * 4 // 3 if num_nodes % 3 == 0 else num_nodes * 3 // 2


def _trapezoid(exponent: Exponent, left: Array, right: Array, num_nodes: int) -> NodeSums:
    xp = namespace(left)
    step = (right - left) / (num_nodes - 1)
    z = _falling_exponentials(both(right, -left), step, num_nodes)
    z[0] = xp.flip(z[0], (0,))
    rise = exponent.rise_at(z)
    rise += exponent.a * step * numbers(num_nodes, step)
    largest = xp.amax(rise, 0)
    rise -= largest
    weights = xp.exp(rise, out=rise)
    total = weights.sum(0)
    z += 1
    firsts = weights * z
    means = xp.stack([(firsts * z).sum(1), firsts.sum(1)], 1)
    means /= total
    return NodeSums(xp.log(total * step) + largest + exponent.a * left, means)


def _falling_exponentials(first: Array, step: Array, num: int) -> Array:
    """``expm1(first - k step)`` for ``k < num``, by doubling what is known.

    Downwards, for upwards rounding errors would grow.

    :param first: shape ``(2, n)``.
    :param step: shape ``(n,)``.
    :returns: shape ``(2, num, n)``.
    """
    xp = namespace(first)
    values = empty((2, num, len(step)), first)
    values[:, 0] = xp.expm1(first)
    known = 1
    while known < num:
        more = min(known, num - known)
        ahead = -known * step
        after = values[:, known : known + more]
        xp.multiply(values[:, :more], xp.exp(ahead), out=after)
        after += xp.expm1(ahead)
        known += more
    return values
