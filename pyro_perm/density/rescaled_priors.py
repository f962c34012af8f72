r"""Priors of the sites that a symmetry rescales, and what they say along the orbits of units.

A guide over a model with rescaled units has the density
:math:`\tilde q(w) = p(w)\, q_Q(w) / p_Q(w)`: the prior's law along every orbit, and that of the
base guide between orbits (see :mod:`pyro_perm.rescaling`). So it takes :math:`p_Q(w) / p(w)` for
each unit, and draws from the prior along the unit's orbit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from pyro_perm.rescaling import (
    Degrees,
    UnitEntries,
    log_orbit_mass,
    log_orbit_mass_under,
    sample_along_orbits,
    sample_along_orbits_under,
)
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.actions.scale import degrees_of
from pyro_perm.symmetry.unit_layout import UnitLayout


@dataclass(frozen=True)
class Priors:
    """Priors of sites with independent entries.

    Attributes:
        sites: site -> distribution of its entries, each by itself: an event is a number. Batch
            shapes broadcast to those of the values.
    """

    sites: Mapping[str, Distribution]
    _means_and_scales: dict[tuple[SymmetryGroup, str], tuple[Tensor, Tensor] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    @property
    def require_grad(self) -> bool:
        """Whether autograd can reach something through them."""
        priors = self.sites.values()
        return any(prior.log_prob(torch.zeros((), device="cpu")).requires_grad for prior in priors)

    def log_prob(self, symmetry: SymmetryGroup, values: Mapping[str, Tensor]) -> Tensor:
        """``log p(w)`` of the rescaled sites, shape ``(*batch)``, in nats and double precision.

        :param values: site -> value, shape ``(*batch, *site shape)``; others are left out.
        """
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for site, prior in self.sites.items():
            log_prob = prior.log_prob(values[site])
            dims = tuple(range(-symmetry.site_rank(site), 0))
            total = total.to(log_prob.device) + log_prob.sum(dims, dtype=torch.float64)
        return total

    def units(
        self, symmetry: SymmetryGroup, group: str, values: Mapping[str, Tensor]
    ) -> UnitsUnderPriors:
        """The units of a group, as far as they are rescaled."""
        return UnitsUnderPriors(self, symmetry, group, values)

    def means_and_scales(self, symmetry: SymmetryGroup, group: str) -> tuple[Tensor, Tensor] | None:
        """Those of the units of a group, shape ``(*batch, n, width)``, if all are Normal."""
        key = symmetry, group
        if key not in self._means_and_scales:
            self._means_and_scales[key] = self._read_means_and_scales(*key)
        return self._means_and_scales[key]

    def _read_means_and_scales(
        self, symmetry: SymmetryGroup, group: str
    ) -> tuple[Tensor, Tensor] | None:
        sites = rescaled_sites(symmetry, group)
        priors = [self.sites[site] for site in sites]
        normals = [prior for prior in priors if isinstance(prior, Normal)]
        if len(normals) < len(priors):
            return None
        layout = UnitLayout.of(symmetry, group, sites)
        shapes = [symmetry.site_shape(site) for site in sites]
        locs, scales = (
            layout.units([_expand(p, s) for p, s in zip(kind, shapes, strict=True)])
            for kind in ([prior.loc for prior in normals], [prior.scale for prior in normals])
        )
        return locs, scales

    @torch.no_grad()
    def sample_log_scales(
        self, symmetry: SymmetryGroup, group: str, values: Mapping[str, Tensor]
    ) -> Tensor:
        """Logarithms of scales that make units draws of the prior given their orbits.

        :returns: shape ``(*batch, n)``, in double precision.
        """
        orbits = self.units(symmetry, group, values)
        if orbits.normals is not None:
            return sample_along_orbits(orbits.normals, orbits.degrees)
        return sample_along_orbits_under(orbits.log_density, orbits.entries, orbits.degrees)


class UnitsUnderPriors:
    """The units of a group under their priors, as far as they are rescaled.

    Attributes:
        entries: what was drawn, shape ``(*batch, n, width)``.
        degrees: how units are rescaled.
        normals: the same with means and scales, if all priors are Normal.
    """

    def __init__(
        self, priors: Priors, symmetry: SymmetryGroup, group: str, values: Mapping[str, Tensor]
    ) -> None:
        sites = rescaled_sites(symmetry, group)
        self._layout = UnitLayout.of(symmetry, group, sites)
        self._priors = [priors.sites[site] for site in sites]
        self.degrees: Degrees = degrees_of(self._layout.parts)
        self.entries = self._layout.units([values[site] for site in sites])
        parameters = priors.means_and_scales(symmetry, group)
        self.normals = None if parameters is None else UnitEntries(self.entries, *parameters)

    def log_mass(self) -> Tensor:
        """``log p_Q(w) - log p(w)`` of each unit, shape ``(*batch, n)``, in nats."""
        if self.normals is not None:
            return log_orbit_mass(self.normals, self.degrees)
        return log_orbit_mass_under(self.log_density, self.entries, self.degrees)

    def log_density(self, entries: Tensor) -> Tensor:
        """``log p`` of units, shape ``(..., *batch, n)``."""
        sites = self._layout.sites_from([entries])
        each = [prior.log_prob(value) for prior, value in zip(self._priors, sites, strict=True)]
        return self._layout.units(each).sum(-1, dtype=torch.float64)


@lru_cache
def rescaled_sites(symmetry: SymmetryGroup, group: str) -> tuple[str, ...]:
    """The sites that a group rescales."""
    axes = symmetry.spec[group]
    return tuple(site for site in axes if any(axis.scale for axis in axes[site]))


def elementwise(prior: Any) -> Distribution:
    """The distribution of entries behind one whose entries are independent."""
    while isinstance(prior, Independent):
        prior = prior.base_dist
    distribution: Distribution = prior
    return distribution


def _expand(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor.expand(torch.broadcast_shapes(tensor.shape, shape))
