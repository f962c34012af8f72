"""Rescaling of a unit, as of rectifiers: ``H`` is the multiplicative group of positive numbers.

It is not compact, so that there is no uniform element; those drawn here serve to check a model.
Elements are logarithms of scales. The integrals along orbits are those of
:mod:`pyro_perm.rescaling`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from pyro_perm.rescaling import (
    Degrees,
    OrbitPairs,
    UnitEntries,
    log_orbit_mass,
    log_orbit_mass_ratio,
    orbit_pairs,
    smallest_divergences,
    tolerance_for,
)
from pyro_perm.symmetry.actions.orbits import Orbits, Part, UnitPairs, Units
from pyro_perm.symmetry.actions.permute import (
    is_harmless_in_single_precision,
    may_serve_in_single_precision,
)
from pyro_perm.symmetry.actions.unit_action import UnitAction
from pyro_perm.symmetry.axis import Axis

_LARGEST = 4.0


@dataclass(frozen=True)
class Scale(UnitAction):
    """Multiplies what belongs to a unit by a power of its scale, the ``scale=`` of each axis."""

    name = "scale"
    verb = "rescale"
    deed = "rescales"
    legend = "c^k rescales"

    def degree(self, axis: Axis) -> int:
        """The power."""
        return axis.scale

    def mark(self, axis: Axis) -> str:
        """``c``, ``c^-1`` and so on."""
        return {0: "", 1: "c "}.get(axis.scale, f"c^{axis.scale} ")

    @property
    def support(self) -> constraints.Constraint:
        """Real."""
        return constraints.real

    @property
    def order(self) -> float:
        """Infinite."""
        return math.inf

    def identity(self, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """Log-scales of zero."""
        return torch.zeros(tuple(shape), device=device)

    def sample(
        self,
        shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-scales, uniform between those of 1/4 and 4."""
        uniform = torch.rand(tuple(shape), device=device, generator=generator)
        return math.log(_LARGEST) * (2 * uniform - 1)

    def generators(self) -> Tensor:
        """Two scales whose powers are dense."""
        return torch.tensor([2.0, 3.0], device="cpu").log()

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """Scales multiply."""
        return first + second

    def inverse(self, element: Tensor) -> Tensor:
        """The reciprocal scale."""
        return -element

    def act(self, value: Tensor, element: Tensor, axis: Axis, rank: int) -> Tensor:
        """Rescale units along an axis."""
        if not axis.scale:
            return value
        factors = (axis.scale * element).to(value.dtype).exp()
        return value * axis.along(factors, value.shape[axis.dim], rank)

    def refusal(self, support: constraints.Constraint) -> str | None:
        """Only real values are rescaled."""
        if isinstance(support, type(constraints.real)):
            return None
        return "only values on the whole real line can be rescaled; give the axis without scale="

    def orbits(self, parts: Sequence[Part], rest: Orbits) -> Orbits:
        """Units at all scales, by quadrature along each orbit.

        :raises ValueError: for powers other than 1 and -1, or if no entry is rescaled.
        """
        return _Rescaled(degrees_of(tuple(parts)))


@lru_cache
def degrees_of(parts: tuple[Part, ...]) -> Degrees:
    """By which power each entry of a unit is rescaled, parts side by side.

    :raises ValueError: for powers other than 1 and -1, or if no entry is rescaled.
    """
    return Degrees.of([part.axis.scale for part in parts for _ in range(part.width)])


@dataclass(frozen=True, eq=False)
class _Rescaled(Orbits):
    """Units at all scales.

    Attributes:
        degrees: by which power of the scale each entry is multiplied.
    """

    degrees: Degrees

    @property
    def may_shift(self) -> bool:
        """Only where there are entries that stay."""
        return self.degrees.num_fixed > 0

    def fixed_point(self, entries: Tensor) -> Tensor:
        """Entries that are rescaled stay relative to zero."""
        incoming, outgoing, fixed = self.degrees.split(entries)
        return self.degrees.join(torch.zeros_like(incoming), torch.zeros_like(outgoing), fixed)

    def pairs(self, units: Units) -> _RescaledPairs:
        """``log int q_i(t . w_j) e^{a t} dt``."""
        tolerance = tolerance_for(units.values.dtype)
        if not (may_serve_in_single_precision(units) and is_harmless_in_single_precision(units)):
            units = Units(*(kind.double() for kind in units))
        pairs = orbit_pairs(UnitEntries(*units), self.degrees, tolerance=tolerance)
        log_densities: Tensor = _LogDensities.apply(pairs, *units)
        return _RescaledPairs(log_densities, pairs)

    def log_mass(self, units: Units) -> Tensor:
        """The same for each unit under its own factor, relative to the unit's density."""
        return log_orbit_mass(UnitEntries(*units), self.degrees)

    def log_mass_ratio(self, units: Units, prior: UnitEntries, degrees: Degrees) -> Tensor:
        """Both integrated together."""
        return log_orbit_mass_ratio(UnitEntries(*units), self.degrees, prior, degrees)

    def divergences(
        self, locs: Tensor, scales: Tensor, image_locs: Tensor, image_scales: Tensor
    ) -> Tensor:
        """The smallest over all scales."""
        return smallest_divergences(locs, scales, image_locs, image_scales, self.degrees)


@dataclass(frozen=True, eq=False)
class _RescaledPairs(UnitPairs):
    """Unit pairs integrated over scales.

    Attributes:
        pairs: their quadrature.
    """

    log_densities: Tensor
    pairs: OrbitPairs

    def gradients(self, weights: Tensor) -> Units:
        """Those of the quadrature, from means along the orbits."""
        return Units(*self.pairs.gradients(weights))


class _LogDensities(torch.autograd.Function):
    """The pairs as a function of the units, for autograd."""

    @staticmethod
    def forward(
        ctx: Any, pairs: OrbitPairs, values: Tensor, locs: Tensor, scales: Tensor
    ) -> Tensor:
        ctx.pairs = pairs
        return pairs.log_densities.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.pairs.gradients(grad_output)
