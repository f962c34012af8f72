r"""Flips of a unit's sign, as of odd activations: ``H`` has two elements.

The sum over the two has a closed form. ``L`` becomes
``log(q_i(w_j) + q_i(-w_j)) = log q_i(w_j) + softplus(-2 O[i, j])``, where the part of
``log q_i(w_j)`` that is odd is ``O[i, j] = sum_d w_jd m_id / s_id^2`` over the entries that flip.
What that adds to its gradient is ``-2 S_ij dO_ij``, with ``S_ij`` the probability that unit ``j``,
if it came from unit ``i``, came with its sign changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_perm.permanent._precision import in_sufficient_precision
from pyro_perm.symmetry.actions.finite import FiniteAction
from pyro_perm.symmetry.actions.orbits import Orbits, Part, UnitPairs, Units
from pyro_perm.symmetry.actions.permute import QuadraticPairs, SingleImages
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.elements import Element, flip


@dataclass(frozen=True)
class Sign(FiniteAction):
    """Changes the signs of what belongs to a unit, along the axes with ``sign=True``."""

    name = "sign"
    verb = "flip"
    deed = "flips the signs of"
    legend = "± flips sign"
    is_written_as_sign = True

    def degree(self, axis: Axis) -> int:
        """One along the axes that flip."""
        return int(axis.sign)

    def mark(self, axis: Axis) -> str:
        """``±`` along the axes that flip."""
        return "±" if axis.sign else ""

    def elements(self) -> Tensor:
        """Whether to flip."""
        return torch.tensor([False, True], device="cpu")

    def generators(self) -> Tensor:
        """The flip."""
        return torch.tensor([True], device="cpu")

    def sample(
        self,
        shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A fair coin for each unit."""
        return torch.rand(*shape, device=device, generator=generator) < 0.5

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """One of the two, but not both."""
        return first ^ second

    def inverse(self, element: Tensor) -> Tensor:
        """The same."""
        return element

    def act(self, value: Tensor, element: Tensor, axis: Axis, rank: int) -> Tensor:
        """Flip units along an axis."""
        if not axis.sign:
            return value
        return value * axis.along(torch.where(element, -1, 1), value.shape[axis.dim], rank)

    def refusal(self, support: constraints.Constraint) -> str | None:
        """Only real values flip."""
        if isinstance(support, type(constraints.real)):
            return None
        return (
            "only values on the whole real line can change their sign; give the axis without "
            "sign=True"
        )

    def invariant(self, entries: Tensor, axis: Axis) -> Tensor:
        """Sizes, where entries flip."""
        return entries.abs() if axis.sign else entries

    def part_of(self, element: Element) -> Tensor:
        """The signs of the permutation."""
        return element.permutation < 0

    def with_part(self, element: Element, part: Tensor) -> Element:
        """The element with signs."""
        return replace(element, permutation=flip(element.permutation, part))

    def orbits(self, parts: Sequence[Part], rest: Orbits) -> Orbits:
        """Units and their negatives, in closed form if nothing else acts on them."""
        if not isinstance(rest, SingleImages):
            return super().orbits(parts, rest)
        flips = [part.axis.sign for part in parts for _ in range(part.width)]
        return _Negatives(torch.tensor(flips, dtype=torch.bool, device="cpu"), rest)


@dataclass(frozen=True, eq=False)
class _Negatives(Orbits):
    """Units and their negatives.

    Attributes:
        flips: which entries of a unit change sign, shape ``(width,)``.
        alone: units without their negatives.
    """

    flips: Tensor
    alone: SingleImages

    def fixed_point(self, entries: Tensor) -> Tensor:
        """Entries that flip stay relative to zero."""
        return entries.masked_fill(self.flips.to(entries.device), 0.0)

    def pairs(self, units: Units) -> _SignedPairs:
        """Both terms of the sum, from the first and the odd part."""
        plain = self.alone.pairs(units)
        odd = in_sufficient_precision(self._odd_weights(units) @ units.values.mT)
        flips = self.flips.to(units.values)
        return _SignedPairs(plain.log_densities + _log_sum(odd), plain, odd, flips)

    def log_mass(self, units: Units) -> Tensor:
        """``log(1 + q_i(-w_i) / q_i(w_i))``."""
        return _log_sum((self._odd_weights(units) * units.values).sum(-1, dtype=torch.float64))

    def divergences(
        self, locs: Tensor, scales: Tensor, image_locs: Tensor, image_scales: Tensor
    ) -> Tensor:
        """The smaller of both."""
        negatives = torch.where(self.flips.to(locs.device), -image_locs, image_locs)
        return torch.minimum(
            self.alone.divergences(locs, scales, image_locs, image_scales),
            self.alone.divergences(locs, scales, negatives, image_scales),
        )

    def _odd_weights(self, units: Units) -> Tensor:
        weights: Tensor = units.locs / units.scales.square()
        return weights * self.flips.to(weights)


@dataclass(frozen=True, eq=False)
class _SignedPairs(UnitPairs):
    """Unit pairs summed over signs.

    Attributes:
        plain: the term of the units as they are.
        odd: ``O``, shape ``(*batch, n, n)``, in the precision of ``L``.
        flips: 1 for entries that change sign, else 0, shape ``(width,)``.
    """

    log_densities: Tensor
    plain: QuadraticPairs
    odd: Tensor
    flips: Tensor

    def gradients(self, weights: Tensor) -> Units:
        """Those of the quadratic part, and those of ``sum_ij -2 R_ij S_ij O_ij``."""
        weights = weights.to(self.flips.dtype)
        grads = self.plain.gradients(weights)
        odd_weights = (weights * (-2 * (-2 * self.odd).sigmoid())).to(weights.dtype)
        return Units(*map(torch.add, grads, self._odd_gradients(odd_weights)))

    def _odd_gradients(self, weights: Tensor) -> Units:
        """Gradients of ``sum_ij T_ij O_ij``."""
        values, locs, scales = self.plain.units
        precision = scales.square().reciprocal() * self.flips
        mixed = precision * (weights @ values)
        return Units(
            values=weights.mT @ (precision * locs), locs=mixed, scales=-2 * locs / scales * mixed
        )


def _log_sum(odd: Tensor) -> Tensor:
    """``log(1 + exp(-2 odd))``."""
    return softplus(-2 * odd, threshold=40)
