r"""Where along its orbit a unit's integrand has weight, and how finely it must be sampled.

**Window.** The nodes span what is within ``depth`` nats of a mode.

**Step.** The trapezoidal rule with step ``d`` errs by ``2 exp(-2 pi^2 / (k d^2))`` on a Gaussian of
curvature ``k`` (Trefethen & Weideman 2014). Elsewhere ``k`` is the largest of the curvatures at the
mode and at both shoulders, about three nats below it: with that, on 20,000 integrands of one mode
and two, flat and sharp, the error stays below the tolerance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pyro_perm.rescaling._arrays import Array, both, namespace, positions
from pyro_perm.rescaling._exponent import Exponent, align, powers
from pyro_perm.rescaling._modes import find_second_modes

_REACH_STEPS = 2
# A reach that the last step changes by a larger share, or from so deep, is bisected.
_SMALL_CHANGE, _DEEP = 0.2, 4.0
_DOUBLINGS, _HALVINGS = 60, 12
# Shoulders: this share of the reach, or this far inside of it where the fall is that of e^{2t}.
_SHOULDER, _EDGE = 0.55, 0.75
_SMALLEST = torch.finfo(torch.float64).tiny
# Two modes that this many nodes span share one window.
_MANY_NODES = 256


class Windows(NamedTuple):
    """Intervals that hold the integrands' weight.

    Attributes:
        exponent: with its origin at the anchor, near a mode.
        anchor: relative to the balanced origin, shape ``(windows,)``.
        left: where the window begins, relative to the anchor.
        right: where it ends.
        num_nodes: how many nodes it needs.
        pair: whose it is, or None where every pair has one, in order.
    """

    exponent: Exponent
    anchor: Array
    left: Array
    right: Array
    num_nodes: Array
    pair: Array | None = None

    def take(self, index: Array) -> Windows:
        """Some of them."""
        anchor, left, right, num_nodes = (part[index] for part in self[1:5])
        return Windows(self.exponent.take(index), anchor, left, right, num_nodes)


def find_windows(balanced: Exponent, modes: Array, moved: Exponent, depth: float) -> Windows:
    """One window a pair, or two where two modes are apart.

    :param balanced: a balanced exponent.
    :param modes: one of each integrand, shape ``(n,)``.
    :param moved: the exponent there.
    :param depth: nats below a mode that are left out; minus the logarithm of the accuracy.
    """
    windows = _windows(moved, modes, depth)
    pair, second = find_second_modes(balanced, modes, moved, depth)
    if not len(pair):
        return windows
    others = _windows(balanced.take(pair).move(second), second, depth)
    return _join(windows, others, pair)


def _windows(exponent: Exponent, anchor: Array, depth: float) -> Windows:
    xp = namespace(anchor)
    curvature = exponent.curvature()
    ends = _reach(exponent, curvature, depth)
    length = ends[1] - ends[0]
    steps_a_deviation = math.sqrt((depth + math.log(2)) / 2) / math.pi
    sharpest = xp.sqrt(xp.maximum(curvature, _sharpness(exponent, ends)))
    num_nodes = 1 + steps_a_deviation * length * sharpest
    return Windows(exponent, anchor, ends[0], ends[1], num_nodes)


def _sharpness(exponent: Exponent, ends: Array) -> Array:
    """The larger curvature of the two shoulders."""
    xp = namespace(ends)
    size = xp.abs(ends)
    shoulders = xp.copysign(xp.maximum(size - _EDGE, _SHOULDER * size), ends)
    _, curvature, _ = exponent.derivatives(shoulders)
    return xp.maximum(curvature[0], curvature[1])


def _reach(exponent: Exponent, curvature: Array, depth: float) -> Array:
    """Where ``h`` is ``depth`` below the origin on the left and on the right, shape ``(2, n)``.

    The root of the fall is nearly linear, and Newton's steps on it converge fast from a start with
    the right skewness. Where they do not, the result is bisected.
    """
    xp = namespace(curvature)
    start = t = _first_reach(exponent, curvature, depth)
    squares, crosses = align(exponent.squares, t), align(exponent.crosses, t)
    half_squares, differences = -0.5 * squares, crosses - squares
    change = fall = t
    for _ in range(_REACH_STEPS):
        x = powers(t)
        slopes = squares * x
        slopes -= crosses
        slopes *= x
        x -= 1
        falls = half_squares * x
        falls += differences
        falls *= x
        fall = xp.clip(-(falls[0] + falls[1] + exponent.a * t), 0.01 * depth, None)
        change = 2 * (xp.sqrt(depth * fall) - fall) / ((slopes[0] - slopes[1] - exponent.a) * t)
        change = xp.clip(change, -0.8, 2.0)
        t = t + t * change
    slow = (xp.abs(change) > _SMALL_CHANGE) | (fall > _DEEP * depth)
    if bool(slow.any()):
        where = positions(slow[0] | slow[1])
        t[:, where] = _bisected_reach(exponent.take(where), start[:, where], depth)
    return t


def _first_reach(exponent: Exponent, curvature: Array, depth: float) -> Array:
    """That of a skewed Gaussian, not beyond where one end alone has fallen as far."""
    xp = namespace(curvature)
    squares, crosses, _ = exponent
    half = xp.sqrt(2 * depth / xp.clip(curvature, _SMALLEST, None))
    thirds = crosses - 4 * squares
    skew = (thirds[0] - thirds[1]) * half * half / (6 * curvature)
    skew = xp.minimum(xp.maximum(skew, -0.5 * half), 0.5 * half)
    # Where ``square z^2 / 4`` exceeds the depth and ``(cross - square) z``, for ``z = e^t - 1``.
    excess = 4 * xp.clip(crosses - squares, 0, None) / xp.clip(squares, _SMALLEST, None)
    far = xp.log1p(xp.sqrt(4 * depth / squares) + excess)
    return both(xp.maximum(skew - half, -far[1]), xp.minimum(skew + half, far[0]))


def _bisected_reach(exponent: Exponent, t: Array, depth: float) -> Array:
    xp = namespace(t)
    for _ in range(_DOUBLINGS):
        short = exponent.rise(t) > -depth
        if not bool(short.any()):
            break
        t = xp.where(short, 2 * t, t)
    inner = xp.zeros_like(t)
    for _ in range(_HALVINGS):
        middle = 0.5 * (inner + t)
        short = exponent.rise(middle) > -depth
        inner, t = xp.where(short, middle, inner), xp.where(short, t, middle)
    return t


def _join(windows: Windows, others: Windows, pair: Array) -> Windows:
    """Both windows of some pairs, or one that spans them where they meet or few nodes do."""
    xp = namespace(pair)
    first = windows.take(pair)
    offset = others.anchor - first.anchor
    other_left, other_right = others.left + offset, others.right + offset
    left = xp.minimum(first.left, other_left)
    right = xp.maximum(first.right, other_right)
    spanning = 1 + xp.maximum(_density(first), _density(others)) * (right - left)
    meet = (other_left <= first.right) & (first.left <= other_right)
    one = meet | (spanning <= _MANY_NODES)
    spanned = pair[one]
    windows.left[spanned], windows.right[spanned] = left[one], right[one]
    windows.num_nodes[spanned] = spanning[one]
    two = positions(~one)
    if not len(two):
        return windows
    others = others.take(two)
    anchor, left, right, num_nodes = (
        xp.concatenate([x, y]) for x, y in zip(windows[1:5], others[1:5], strict=True)
    )
    everyone = positions(windows.anchor == windows.anchor)
    exponent = windows.exponent.join(others.exponent)
    return Windows(exponent, anchor, left, right, num_nodes, xp.concatenate([everyone, pair[two]]))


def _density(windows: Windows) -> Array:
    return (windows.num_nodes - 1) / (windows.right - windows.left)
