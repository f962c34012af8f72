"""Integrals of many pairs at once: windows, their nodes, and sums over both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_perm.rescaling._exponent import Exponent, both_ends
from pyro_perm.rescaling._nodes import sum_nodes
from pyro_perm.rescaling._windows import find_windows

# Pairs that are integrated at once: their temporaries should stay in a processor's cache.
_PAIRS_AT_ONCE = 4096
# By how much less than asked for is left out, for what is left out adds up.
_MARGIN = math.log(4)


def integrate(exponent: Exponent, tolerance: float) -> tuple[Tensor, Tensor]:
    """Log-integrals, shape ``(n,)``, and means as of ``OrbitIntegral``, shape ``(4, n)``.

    :raises ValueError: where an integral diverges or a coefficient is not a number, or if the
        tolerance is not between 0 and 0.1.
    """
    if not 0 < tolerance < 0.1:
        raise ValueError(f"tolerance must lie between 0 and 0.1, got {tolerance}")
    num = exponent.squares.shape[1]
    if not num:
        return exponent.squares.new_empty(0), exponent.squares.new_empty(4, 0)
    depth = _MARGIN - math.log(tolerance)
    if num <= _PAIRS_AT_ONCE:
        log_integrals, means = _integrate(exponent, depth)
    else:
        chunks = [_integrate(some, depth) for some in exponent.chunks(_PAIRS_AT_ONCE)]
        log_integrals = torch.cat([value for value, _ in chunks])
        means = torch.cat([mean for _, mean in chunks], 1)
    exponent.require_integrals(log_integrals)
    return log_integrals, means


def bound(exponent: Exponent) -> Tensor:
    """Upper bounds of the log-integrals, shape ``(n,)``: see ``log_integral_bound``."""
    balanced, origin = exponent.balanced()
    modes = balanced.bracket()
    modes[1].neg_()
    tops = modes.exp().mul_(balanced.crosses).sub_(balanced.squares).mul_(0.5)
    tops.addcmul_(balanced.squares, modes)
    width = balanced.squares.amax(0).reciprocal_()
    log_width = (width + (2 * math.pi * width).sqrt_()).log_()
    return tops.sum(0).add_(log_width).add_(origin, alpha=exponent.a)


def _integrate(exponent: Exponent, depth: float) -> tuple[Tensor, Tensor]:
    """Log-integrals, shape ``(n,)``, and means, shape ``(4, n)``."""
    balanced, origin = exponent.balanced()
    windows = find_windows(balanced, depth)
    sums = sum_nodes(windows)
    value = sums.log_integral.add_(windows.exponent.value())
    value.add_(windows.anchor, alpha=exponent.a)
    means = sums.means.mul_(_powers(windows.anchor))
    if windows.pair is not None:
        value, means = _sum_of_windows(value, means, windows.pair, len(origin))
    return value.add_(origin, alpha=exponent.a), means.mul_(_powers(origin))


def _powers(t: Tensor) -> Tensor:
    """``e^{2t}``, ``e^t``, ``e^{-2t}`` and ``e^{-t}``."""
    x = both_ends(t).exp_()
    return torch.stack([x * x, x], 1).flatten(0, 1)


def _sum_of_windows(
    value: Tensor, means: Tensor, pair: Tensor, num_pairs: int
) -> tuple[Tensor, Tensor]:
    largest = value.new_full((num_pairs,), -math.inf).scatter_reduce_(0, pair, value, "amax")
    weights = (value - largest[pair]).exp_()
    total = weights.new_zeros(num_pairs).index_add_(0, pair, weights)
    mean = means.new_zeros(4, num_pairs).index_add_(1, pair, means * weights).div_(total)
    return total.log().add_(largest), mean
