"""Integrals over the scales of a unit on very fine grids: slow, and simple enough to be trusted."""

import numpy as np
import torch
from torch import Tensor

_POINTS = 20_001


def log_exponent(t: np.ndarray, A: float, B: float, C: float, D: float, a: float) -> np.ndarray:
    """``h(t)``."""
    x = np.exp(t)
    return -(A * x * x - 2 * B * x + C / (x * x) - 2 * D / x) / 2 + a * t


def grid(A: float, B: float, C: float, D: float, a: float) -> tuple[np.ndarray, np.ndarray]:
    """Points that span all of the integrand's weight, and the logarithm of it there."""
    low, high = -60.0, 60.0
    while True:
        t = np.linspace(low, high, _POINTS)
        heights = log_exponent(t, A, B, C, D, a)
        inside = np.flatnonzero(heights > heights.max() - 60)
        new_low, new_high = t[max(inside[0] - 1, 0)], t[min(inside[-1] + 1, _POINTS - 1)]
        if new_high - new_low > 0.9 * (high - low):
            return t, heights
        low, high = new_low, new_high


def log_integral(A: float, B: float, C: float, D: float, a: float) -> float:
    """``log int exp h(t) dt``."""
    t, heights = grid(A, B, C, D, a)
    top = heights.max()
    return float(top + np.log(np.exp(heights - top).sum() * (t[1] - t[0])))


def means(A: float, B: float, C: float, D: float, a: float) -> np.ndarray:
    """Of ``e^{2t}``, ``e^t``, ``e^{-2t}`` and ``e^{-t}``."""
    t, heights = grid(A, B, C, D, a)
    weights = np.exp(heights - heights.max())
    powers = np.exp(np.outer([2.0, 1.0, -2.0, -1.0], t))
    return (powers * weights).sum(1) / weights.sum()


def log_orbit_density(values: Tensor, locs: Tensor, scales: Tensor, powers: Tensor) -> Tensor:
    """``log int prod_d N(e^{k_d t} w_d; m_d, s_d) e^{a t} dt`` of a unit, by brute force.

    :param powers: ``k``, shape ``(width,)``, as all others.
    """
    t = torch.linspace(-12, 12, 48_001)
    rescaled = (t.unsqueeze(-1) * powers).exp() * values
    log_density = torch.distributions.Normal(locs, scales).log_prob(rescaled).sum(-1)
    return (log_density + powers.sum() * t).logsumexp(0) + (t[1] - t[0]).log()
