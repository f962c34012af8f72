"""Rescaling of a unit, as of rectifiers: ``H`` is the multiplicative group of positive numbers.

It is not compact, so that there is no uniform element; those drawn here serve to check a model.
Elements are logarithms of scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_perm.symmetry.actions.orbits import Orbits, Part
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

    @classmethod
    def of(cls, axes: Iterable[Axis]) -> Scale | None:
        """Scales, where some axis has a power."""
        return cls() if any(axis.scale for axis in axes) else None

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
        return torch.tensor([2.0, 3.0]).log()

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

    def orbits(self, parts: Sequence[Part], rest: Orbits) -> Orbits:
        """Refused: densities are not integrated over scales yet."""
        raise ValueError(
            "densities are not integrated over the scales of units yet: give the axes without "
            "scale="
        )
