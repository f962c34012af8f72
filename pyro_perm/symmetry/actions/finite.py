r"""Actions of finite groups, whose sums are taken term by term.

``L[i, j] = log sum_h q_i(h w_j)``, and its gradient is that of ``sum_h S_h[i, j] log q_i(h w_j)``
with the probabilities ``S_h[i, j]`` that unit ``j``, if it came from unit ``i``, came by ``h``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_perm.symmetry.actions.orbits import Orbits, Part, UnitPairs, Units
from pyro_perm.symmetry.actions.unit_action import UnitAction


class FiniteAction(UnitAction):
    """A finite group that permutes the entries of a unit, and changes some of their signs."""

    @abstractmethod
    def elements(self) -> Tensor:
        """All elements, the identity first, shape ``(order,)``."""

    @property
    def support(self) -> Constraint:
        """Between the least and the greatest element."""
        elements = self.elements().long()
        return constraints.integer_interval(int(elements.min()), int(elements.max()))

    @property
    def order(self) -> int:
        """``|H|``."""
        return len(self.elements())

    def identity(self, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """The element that does nothing, shape ``shape``."""
        return self.elements()[0].to(device).expand(tuple(shape))

    def sample(
        self,
        shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Uniform elements, shape ``shape``."""
        elements = self.elements().to(device)
        number = torch.randint(len(elements), tuple(shape), device=device, generator=generator)
        return elements[number]

    def orbits(self, parts: Sequence[Part], rest: Orbits) -> Orbits:
        """All images, one by one."""
        return EnumeratedOrbits(*_tables(self, parts), rest)


@dataclass(frozen=True, eq=False)
class EnumeratedOrbits(Orbits):
    """Images of units under a finite group.

    Attributes:
        sources: where in a unit each entry of its image comes from, shape ``(order, width)``.
        signs: what it is multiplied by, 1 or -1, likewise.
        rest: what further actions do to each image.
    """

    sources: Tensor
    signs: Tensor
    rest: Orbits

    def images(self, entries: Tensor) -> Iterator[Tensor]:
        """The images of what belongs to units, shape ``(..., width)`` each."""
        for source, signs in zip(self.sources, self.signs, strict=True):
            yield self._moved(entries, source) * signs.to(entries)

    def fixed_point(self, entries: Tensor) -> Tensor:
        """The mean over the images."""
        return self.rest.fixed_point(torch.stack([*self.images(entries)]).mean(0))

    def pairs(self, units: Units) -> EnumeratedPairs:
        """The sum over the images of the values."""
        each = tuple(
            self.rest.pairs(units._replace(values=image)) for image in self.images(units.values)
        )
        log_terms = torch.stack([pairs.log_densities for pairs in each])
        return EnumeratedPairs(log_terms.logsumexp(0), log_terms, each, self)

    def log_mass(self, units: Units) -> Tensor:
        """The sum over the images of the values."""
        values, locs, scales = units
        log_terms = []
        for image in self.images(values):
            change = ((values - locs) / scales).square() - ((image - locs) / scales).square()
            gain = 0.5 * change.sum(-1, dtype=torch.float64)
            log_terms.append(gain + self.rest.log_mass(units._replace(values=image)))
        return torch.stack(log_terms).logsumexp(0)

    def divergences(
        self, locs: Tensor, scales: Tensor, image_locs: Tensor, image_scales: Tensor
    ) -> Tensor:
        """The smallest of all images."""
        return reduce(
            torch.minimum,
            (
                self.rest.divergences(locs, scales, image, self._moved(image_scales, source))
                for image, source in zip(self.images(image_locs), self.sources, strict=True)
            ),
        )

    def pull_back(self, gradients: Tensor, number: int) -> Tensor:
        """The gradient of units from that of one of their images."""
        source = self.sources[number].to(gradients.device)
        signed = gradients * self.signs[number].to(gradients)
        return torch.zeros_like(signed).index_copy(-1, source, signed)

    @staticmethod
    def _moved(entries: Tensor, source: Tensor) -> Tensor:
        return entries.index_select(-1, source.to(entries.device))


@dataclass(frozen=True, eq=False)
class EnumeratedPairs(UnitPairs):
    """Unit pairs summed over images.

    Attributes:
        log_terms: the terms of the sum, shape ``(order, *batch, n, n)``.
        each: the unit pairs of every image.
        orbits: the images.
    """

    log_densities: Tensor
    log_terms: Tensor
    each: tuple[UnitPairs, ...]
    orbits: EnumeratedOrbits

    def gradients(self, weights: Tensor) -> Units:
        """The terms' gradients, each by its share; constants cancel in their sum."""
        shares = (self.log_terms - self.log_densities).exp()
        totals: Units | None = None
        for number, (pairs, share) in enumerate(zip(self.each, shares, strict=True)):
            grads = pairs.gradients(weights * share)
            grads = grads._replace(values=self.orbits.pull_back(grads.values, number))
            totals = grads if totals is None else Units(*map(torch.add, totals, grads))
        assert totals is not None
        return totals


def _tables(action: FiniteAction, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """Where entries of images come from, and their signs, from how entries' numbers are moved."""
    tables = []
    for element in action.elements():
        start, images = 0, []
        for _, axis, shape, width in parts:
            size = axis.size(shape[axis.dim])
            numbers = torch.arange(start + 1, start + width + 1, dtype=torch.float64, device="cpu")
            value = axis.from_units(numbers.expand(size, width), shape)
            value = action.act(value, element.expand(size), axis, len(shape))
            images.append(axis.units(value, len(shape))[0])
            start += width
        tables.append(torch.cat(images))
    numbers = torch.stack(tables)
    return numbers.abs().long() - 1, numbers.sign()
