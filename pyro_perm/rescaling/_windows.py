r"""Where along its orbit a unit's integrand has weight, and how finely it must be sampled.

**Window.** The nodes span what is within ``depth`` nats of a mode.

**Step.** The trapezoidal rule with step ``d`` errs by ``2 exp(-2 pi^2 / (k d^2))`` on a Gaussian of
curvature ``k`` (Trefethen & Weideman 2014). What remains of an integrand ``s`` nats below the mode
needs only ``exp(s)`` times that accuracy. So ``k`` is the largest of the curvatures at the mode and
at both shoulders, those discounted by ``1 - s / depth``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.rescaling._exponent import Exponent, align, both_ends
from pyro_perm.rescaling._modes import find_modes, find_second_modes

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
    anchor: Tensor
    left: Tensor
    right: Tensor
    num_nodes: Tensor
    pair: Tensor | None = None


def find_windows(balanced: Exponent, depth: float) -> Windows:
    """One window a pair, or two where two modes are apart.

    :param balanced: a balanced exponent.
    :param depth: nats below a mode that are left out; minus the logarithm of the accuracy.
    """
    modes, moved = find_modes(balanced)
    windows = _windows(moved, modes, depth)
    pair, second = find_second_modes(balanced, modes, moved, depth)
    if not len(pair):
        return windows
    others = _windows(balanced.take(pair).moved(second), second, depth)
    return _joined(windows, others, pair)


def _windows(exponent: Exponent, anchor: Tensor, depth: float) -> Windows:
    curvature = exponent.curvature()
    ends = _reach(exponent, curvature, depth)
    left, right = ends
    sharpest = torch.maximum(curvature, _sharpness(exponent, ends))
    steps_a_deviation = math.sqrt((depth + math.log(2)) / 2) / math.pi
    num_nodes = sharpest.sqrt_().mul_(right - left).mul_(steps_a_deviation).add_(1)
    return Windows(exponent, anchor, left, right, num_nodes)


def _sharpness(exponent: Exponent, ends: Tensor) -> Tensor:
    """The larger curvature of the two shoulders."""
    size = ends.abs()
    shoulders = torch.maximum(size - _EDGE, size.mul_(_SHOULDER)).copysign_(ends)
    _, curvature, _ = exponent.derivatives(shoulders)
    return curvature.amax(0)


def _reach(exponent: Exponent, curvature: Tensor, depth: float) -> Tensor:
    """Where ``h`` is ``depth`` below the origin on the left and on the right, shape ``(2, n)``.

    The root of the fall is nearly linear, and Newton's steps on it converge fast from a start with
    the right skewness. Where they do not, the result is bisected.
    """
    start = t = _first_reach(exponent, curvature, depth)
    squares, crosses = (align(part, t) for part in exponent[:2])
    differences = crosses - squares
    change = t
    for _ in range(_REACH_STEPS):
        x = both_ends(t).exp_()
        incoming, outgoing = (squares * x).sub_(crosses).mul_(x)
        steepness = incoming.sub_(outgoing).sub_(exponent.a)
        z = x.sub_(1)
        fall = torch.addcmul(differences, z, squares, value=-0.5).mul_(z).sum(0).neg_()
        fall.sub_(t, alpha=exponent.a).clamp_min_(0.01 * depth)
        change = (depth * fall).sqrt_().sub_(fall).mul_(2).div_(steepness.mul_(t)).clamp_(-0.8, 2)
        t = torch.addcmul(t, t, change)
    slow = (change.abs() > _SMALL_CHANGE).logical_or_(fall > _DEEP * depth)
    if bool(slow.any()):
        where = slow.any(0).nonzero().squeeze(-1)
        t[:, where] = _bisected_reach(exponent.take(where), start[:, where], depth)
    return t


def _first_reach(exponent: Exponent, curvature: Tensor, depth: float) -> Tensor:
    """That of a skewed Gaussian, not beyond where one end alone has fallen as far."""
    squares, crosses, _ = exponent
    half = curvature.clamp_min(_SMALLEST).reciprocal_().mul_(2 * depth).sqrt_()
    incoming, outgoing = torch.add(crosses, squares, alpha=-4)
    skew = incoming.sub_(outgoing).mul_(half).mul_(half).div_(curvature).div_(6)
    skew = torch.minimum(torch.maximum(skew, -0.5 * half), 0.5 * half)
    # Where ``square z^2 / 4`` exceeds the depth and ``(cross - square) z``, for ``z = e^t - 1``.
    excess = (crosses - squares).clamp_min_(0).mul_(4).div_(squares.clamp_min(_SMALLEST))
    right, left = (4 * depth / squares).sqrt_().add_(excess).log1p_()
    return torch.stack([torch.maximum(skew - half, left.neg_()), torch.minimum(skew + half, right)])


def _bisected_reach(exponent: Exponent, t: Tensor, depth: float) -> Tensor:
    for _ in range(_DOUBLINGS):
        short = exponent.rise(t) > -depth
        if not bool(short.any()):
            break
        t = torch.where(short, 2 * t, t)
    inner = torch.zeros_like(t)
    for _ in range(_HALVINGS):
        middle = 0.5 * (inner + t)
        short = exponent.rise(middle) > -depth
        inner, t = torch.where(short, middle, inner), torch.where(short, t, middle)
    return t


def _joined(windows: Windows, others: Windows, pair: Tensor) -> Windows:
    """Both windows of some pairs, or one that spans them where they meet or few nodes do."""
    anchor, left, right, num_nodes = (part[pair] for part in windows[1:5])
    first = Windows(windows.exponent.take(pair), anchor, left, right, num_nodes)
    offset = others.anchor - first.anchor
    other_left, other_right = others.left + offset, others.right + offset
    left = torch.minimum(first.left, other_left)
    right = torch.maximum(first.right, other_right)
    spanning = torch.maximum(_density(first), _density(others)).mul_(right - left).add_(1)
    meet = (other_left <= first.right) & (first.left <= other_right)
    one = meet | (spanning <= _MANY_NODES)
    spanned = pair[one]
    windows.left[spanned], windows.right[spanned] = left[one], right[one]
    windows.num_nodes[spanned] = spanning[one]
    two = (~one).nonzero().squeeze(-1)
    if not len(two):
        return windows
    exponent = windows.exponent.joined(others.exponent.take(two))
    anchor, left, right, num_nodes = (
        torch.cat([x, y[two]]) for x, y in zip(windows[1:5], others[1:5], strict=True)
    )
    everyone = torch.arange(len(windows.anchor), device=pair.device)
    return Windows(exponent, anchor, left, right, num_nodes, torch.cat([everyone, pair[two]]))


def _density(windows: Windows) -> Tensor:
    return (windows.num_nodes - 1).div_(windows.right - windows.left)
