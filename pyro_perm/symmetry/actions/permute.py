r"""Units that are only permuted: ``H`` is trivial, and ``L[i, j] = log q_i(w_j)``.

Expanding the square of a Gaussian, ``L`` is one matrix product,
``L[i, j] = -1/2 sum_d (w_jd^2 - 2 w_jd m_id) / s_id^2`` plus what depends on ``i`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.permanent._precision import in_sufficient_precision
from pyro_perm.permanent._tracing import is_tracing
from pyro_perm.symmetry.actions.orbits import Orbits, UnitPairs, Units

_WORTH_SINGLE_PRECISION = 1_000_000
# Distance from the center in scales, whose square times the machine epsilon is what rounding costs.
_HARMLESS_IN_SINGLE_PRECISION = 54.0


class PairFactors(NamedTuple):
    """Factors of the quadratic part of the unit pairs: ``-1/2 left @ right.mT``.

    Attributes:
        left: precisions, and precisions times locs, side by side, shape ``(*batch, n, 2 width)``.
        right: squared values, and -2 times the values.
    """

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class SingleImages(Orbits):
    """Every unit is its own only image."""

    def fixed_point(self, entries: Tensor) -> Tensor:
        """All of it."""
        return entries

    def pairs(self, units: Units) -> QuadraticPairs:
        """``L[i, j] = log q_i(w_j)``."""
        factors = pair_factors(units)
        return QuadraticPairs(log_densities(units, factors), units, factors)

    def log_mass(self, units: Units) -> Tensor:
        """Zero."""
        values = units.values
        return torch.zeros(values.shape[:-1], dtype=torch.float64, device=values.device)

    def divergences(
        self, locs: Tensor, scales: Tensor, image_locs: Tensor, image_scales: Tensor
    ) -> Tensor:
        """Those of the factors themselves, by one matrix product for each of its terms."""
        origin = locs.mean(-2, keepdim=True)
        locs, image_locs = locs - origin, image_locs - origin
        precision = scales.square().reciprocal()
        weighted = precision * locs
        squares = precision @ (image_scales.square() + image_locs.square()).mT
        squares = squares - 2 * weighted @ image_locs.mT
        return squares + (weighted * locs).sum(-1, keepdim=True) - locs.shape[-1]


@dataclass(frozen=True)
class QuadraticPairs(UnitPairs):
    """Unit pairs without images, by one matrix product.

    Attributes:
        units: the units.
        factors: those of their pairs.
    """

    log_densities: Tensor
    units: Units
    factors: PairFactors

    def gradients(self, weights: Tensor) -> Units:
        """``sum_ij R_ij L_ij = -1/2 sum_i 1/s_i^2 ((R w^2)_i - 2 m_i (R w)_i)``."""
        values, locs, scales = self.units
        weights = weights.to(values.dtype)
        precision = self.factors.left.chunk(2, -1)[0]
        mixed_precision, mixed_weighted = (weights.mT @ self.factors.left).chunk(2, -1)
        mixed_squares, minus_twice_mixed = (weights @ self.factors.right).chunk(2, -1)
        # In place, since new tensors of this size would cost more than the arithmetic.
        for_values = mixed_weighted.addcmul_(values, mixed_precision, value=-1)
        for_scales = mixed_squares.addcmul_(locs, minus_twice_mixed).mul_(precision).div_(scales)
        for_locs = minus_twice_mixed.mul_(precision).mul_(-0.5)
        return Units(for_values, for_locs, for_scales)


def pair_factors(units: Units) -> PairFactors:
    """The factors of the unit pairs."""
    values, locs, scales = units
    precision = scales.square().reciprocal()
    return PairFactors(
        torch.cat([precision, precision * locs], -1), torch.cat([values.square(), -2 * values], -1)
    )


def log_densities(units: Units, factors: PairFactors) -> Tensor:
    """Log-density of every unit's values under every unit's factor, up to a constant."""
    precision, weighted = factors.left.chunk(2, -1)
    constant = (weighted * units.locs - precision.log()).sum(-1, keepdim=True)
    squares = in_sufficient_precision(factors.left @ factors.right.mT)
    return squares.add_(constant).mul_(-0.5)


def center(units: Units, orbits: Orbits) -> Units:
    """Units relative to the fixed point near the mean loc, in the precision that squares need.

    Expanding squares loses what is common to ``w^2``, ``2 w m`` and ``m^2`` to rounding, about
    ``w^2 / s^2`` times the machine epsilon: nats in single precision where scales are small. Single
    precision serves only where that is harmless and double precision would cost time.
    """
    if not orbits.may_shift:
        return units
    values, locs, scales = units
    origin = orbits.fixed_point(locs.mean(-2, keepdim=True).detach())
    if may_serve_in_single_precision(units):
        single = Units(values - origin, locs - origin, scales)
        if is_harmless_in_single_precision(single):
            return single
    return Units(values.double() - origin, locs.double() - origin, scales.double())


def may_serve_in_single_precision(units: Units) -> bool:
    """Whether double precision would cost time."""
    locs = units.locs
    worthwhile = locs.shape[-2] * locs.numel() > _WORTH_SINGLE_PRECISION
    return locs.dtype == torch.float32 and worthwhile and not is_tracing()


def is_harmless_in_single_precision(units: Units) -> bool:
    """Whether rounding costs little: nothing is far from zero in units of the scales."""
    relative = (units.values / units.scales).detach()
    distances = torch.linalg.vector_norm(relative, dim=-1)
    return float(distances.max()) < _HARMLESS_IN_SINGLE_PRECISION
