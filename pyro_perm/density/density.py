r"""The density of a base guide, seen unit by unit.

For a group of ``n`` units, let ``L[i, j] = log q_i(w_j)``: the log-density of everything that
belongs to sampled unit ``j`` (incoming row, bias, outgoing column) under unit ``i``'s variational
factor, a product of the marginals of its entries.

Where a group ``H`` acts on each unit by itself, the sum over its elements factorizes: ``L`` becomes
``log sum_h q_i(h w_j)`` (see :mod:`pyro_perm.symmetry.actions`).

Where ``H`` rescales units there is no average over it. The guide then takes the prior's law along
each orbit, and ``q`` keeps that of the orbits (see ``pyro_perm.density.rescaled_priors``): what
would be the average's ``log |G|`` is ``log p_Q(w) - log p(w)``, the prior being the same for all of
``G`` that is compact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from pyro_perm.density.rescaled_priors import Priors, UnitsUnderPriors
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.actions.orbits import Orbits, Units
from pyro_perm.symmetry.actions.permute import SingleImages, center
from pyro_perm.symmetry.elements import Elements, as_element
from pyro_perm.symmetry.unit_layout import UnitLayout


@dataclass(frozen=True)
class Density(ABC):
    """The density ``q`` of a base guide over the sites of a symmetry, and a draw ``w`` from it.

    What depends on unit pairs alone goes by the marginals of its entries.

    Attributes:
        symmetry: the group on the sites of the model.
        values: site -> sampled value in unconstrained space, shape ``(*batch, *site shape)``; on
            the simplex itself for a site of probability vectors.
        locs: site -> loc in unconstrained space, ``(*batch, *site shape)``, or without the batch
            where all particles share it; of the marginals where entries depend on each other.
        scales: site -> scale, as ``locs``.
        batch_shape: shape of the particles' batch.
        priors: those of the sites that are rescaled; None where no group rescales.
        factorizes: whether entries are independent. If not, groups only permute.

    :raises TypeError: if a group acts on each unit by itself, and the density does not factorize.
    """

    factorizes: ClassVar[bool]

    symmetry: SymmetryGroup
    values: dict[str, Tensor]
    locs: dict[str, Tensor]
    scales: dict[str, Tensor]
    batch_shape: torch.Size
    priors: Priors | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.symmetry, SymmetryGroup):
            raise TypeError(
                f"the density of a guide needs a SymmetryGroup, but got a "
                f"{type(self.symmetry).__name__}: give symmetry.group"
            )
        if not self.factorizes and self.symmetry.acting_groups:
            factor = self.symmetry.factor(self.symmetry.acting_groups[0])
            raise TypeError(
                f"group '{factor.name}' {factor.actions[0].deed} its units, which takes a base "
                "guide with independent sites: wrap an AutoNormal, or find a symmetry that only "
                "permutes"
            )

    @property
    def device(self) -> torch.device:
        """Where the draw lies."""
        return next(iter(self.values.values())).device

    @property
    def draws_require_grad(self) -> bool:
        """Whether autograd can reach the parameters through the draw."""
        return any(value.requires_grad for value in self.values.values())

    def with_fixed_draws(self) -> Density:
        """The same, but autograd takes the draw for a constant."""
        return replace(self, values={site: v.detach() for site, v in self.values.items()})

    def units(self, group: str, sites: Iterable[str]) -> Units:
        """Everything in the given sites that belongs to each unit of a group."""
        sites = tuple(sites)
        layout = UnitLayout.of(self.symmetry, group, sites)
        kinds = (self.values, self.locs, self.scales)
        return Units(*(layout.units([kind[site] for site in sites]) for kind in kinds))

    def unit_pairs(self, group: str, sites: Iterable[str]) -> Tensor:
        """``L[i, j] = log q_i(w_j)`` up to a constant that no permutation changes, in nats.

        Summed over the images of ``w_j`` where the group acts on each unit by itself.

        :returns: shape ``(*batch, n, n)``, in double precision.
        """
        sites = tuple(sites)
        orbits = UnitLayout.of(self.symmetry, group, sites).orbits
        return orbits.pairs(center(self.units(group, sites), orbits)).log_densities.double()

    def log_mass(self, group: str, sites: Iterable[str]) -> Tensor:
        """``log sum_h q(h . w) / q(w)`` over what the group does to each unit by itself.

        :param sites: sites of the group that count.
        :returns: shape ``(*batch)``, in nats and double precision; zero where it only permutes.
        """
        sites = tuple(sites)
        orbits = UnitLayout.of(self.symmetry, group, sites).orbits
        return orbits.log_mass(center(self.units(group, sites), orbits)).sum(-1)

    def log_mean(self, group: str, sites: Iterable[str]) -> Tensor:
        """:meth:`log_mass` minus what priors have a share in :meth:`log_unit_volume`.

        :param sites: as for :meth:`log_mass`; all of the group's where it rescales.
        :returns: shape ``(*batch)``, in nats and double precision.
        """
        if self.symmetry.factor(group).is_compact:
            return self.log_mass(group, sites)
        sites = tuple(sites)
        prior = self._units_under_priors(group)
        if prior.normals is None:
            return self.log_mass(group, sites) - prior.log_mass().sum(-1)
        orbits = UnitLayout.of(self.symmetry, group, sites).orbits
        units = center(self.units(group, sites), orbits)
        return orbits.log_mass_ratio(units, prior.normals, prior.degrees).sum(-1)

    @property
    def log_volume(self) -> Tensor | float:
        """Logarithm of what the sum over the group is divided by, in nats.

        ``log |G|`` where it is compact, otherwise ``log p_Q(w) - log p(w)``, shape ``(*batch)``.

        :raises ValueError: if a group rescales sites whose priors are not known.
        """
        symmetry = self.symmetry
        if not symmetry.open_groups:
            return symmetry.log_order
        priors = (self._log_prior_mass(group) for group in symmetry.open_groups)
        return symmetry.log_compact_order + sum(priors)

    def log_unit_volume(self, group: str) -> Tensor | float:
        """The part of it that is due to what a group does to each unit by itself."""
        factor = self.symmetry.factor(group)
        if factor.is_compact:
            return factor.log_unit_orders
        return factor.log_compact_unit_orders + self._log_prior_mass(group)

    @property
    def scale_gain(self) -> Tensor | float:
        """What rescaling units alone adds to the ELBO, ``log q(w)/q_Q(w) - log p(w)/p_Q(w)``.

        Its expectation is the divergence of ``q`` from the prior along the orbits.

        :returns: shape ``(*batch)``, in nats and double precision; zero where no group rescales.
        """
        return sum(
            self._log_prior_mass(group) - self._log_scale_mass(group)
            for group in self.symmetry.open_groups
        )

    def _log_prior_mass(self, group: str) -> Tensor:
        return self._units_under_priors(group).log_mass().sum(-1)

    def _units_under_priors(self, group: str) -> UnitsUnderPriors:
        if self.priors is None:
            raise ValueError(
                f"group '{group}' rescales its units, which takes their priors: use a guide that "
                "knows its model, or leave the group out with symmetry.subset()"
            )
        return self.priors.units(self.symmetry, group, self.values)

    def _log_scale_mass(self, group: str) -> Tensor:
        """``log int q(t . w) dt - log q(w)``, whatever else the group does to its units."""
        sites = tuple(self.symmetry.spec[group])
        parts = UnitLayout.of(self.symmetry, group, sites).parts
        orbits: Orbits = SingleImages()
        for action in self.symmetry.factor(group).actions:
            if not action.is_compact:
                orbits = action.orbits(parts, orbits)
        return orbits.log_mass(center(self.units(group, sites), orbits)).sum(-1)

    @abstractmethod
    def log_ratio(self, permutations: Elements) -> Tensor:
        """``log q(g . w) - log q(w)`` for many ``g``.

        :param permutations: an element of every group, shape ``(num, *batch, n)``.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """

    def log_orbit_ratio(self, permutations: Elements) -> Tensor:
        """``log q_Q(g . w) - log q(w)``, summed over what groups do to each unit by itself.

        Where there is such a group, no two groups may share a site.

        :param permutations: a permutation of every group, shape ``(num, *batch, n)``.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """
        if not self.symmetry.acting_groups:
            return self.log_ratio(permutations)
        total: Tensor | float = 0.0
        for group, permutation in permutations.items():
            sites = tuple(self.symmetry.spec[group])
            ratio = gather_pairs(self.unit_pairs(group, sites), as_element(permutation).permutation)
            total = total + ratio + self.log_mass(group, sites)
        return torch.as_tensor(total)

    def coinciding_groups(self) -> list[str]:
        """Groups whose units all have the same variational factor: saddles of the objective."""
        return [group for group in self.symmetry.spec if self._coincides(group)]

    def _coincides(self, group: str) -> bool:
        factor = self.symmetry.factor(group)
        if factor.size == 1 or not factor.permutes:
            return False
        permutation = {group: factor.identity(self.device).roll(1)}
        sites = [s for s in self.symmetry.spec[group] if not self.symmetry.is_simplex(s)]
        parameters = ({s: tensors[s] for s in sites} for tensors in (self.locs, self.scales))
        return bool(sites) and all(
            torch.equal(moved, tensors[site])
            for tensors in parameters
            for site, moved in self.symmetry.apply(permutation, tensors).items()
        )


def gather_pairs(pairs: Tensor, permutation: Tensor) -> Tensor:
    """``sum_i (L[i, g(i)] - L[i, i])``.

    :param pairs: shape ``(*batch, n, n)``.
    :param permutation: shape ``(num, *batch, n)``.
    :returns: shape ``(num, *batch)``.
    """
    picked = torch.take_along_dim(pairs.unsqueeze(0), permutation.unsqueeze(-1), -1).squeeze(-1)
    return (picked - pairs.diagonal(dim1=-2, dim2=-1)).sum(-1)
