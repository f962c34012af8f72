"""The chain rule's two bounds, every permanent certified by importance sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_perm.density.density import Density, gather_pairs
from pyro_perm.estimators import _costs
from pyro_perm.estimators._proposal import identity, log_mean, num_affordable
from pyro_perm.estimators._terms import Term, lower_terms, upper_terms
from pyro_perm.estimators.estimator import (
    Bounds,
    Estimator,
    joint_draws,
    register_estimator,
    require_positive,
    require_served,
)
from pyro_perm.permanent.row_by_row import sample_rescaled
from pyro_perm.symmetry.separable import coupled_sites


@register_estimator
@dataclass(frozen=True)
class SampledChainRule(Estimator):
    """Bounds from one permanent a group (see ``pyro_perm.estimators._terms``).

    Both sums over groups bound ``I(g; w)``; a bound on each of their terms on the same side bounds
    it still.

    :param num_permutations: number of draws for each permanent beside the true permutation.
    :raises ValueError: if it is not a positive int.
    """

    num_permutations: int

    is_lower_bound = True
    method = "chain rule"

    def __post_init__(self) -> None:
        require_positive("num_permutations", self.num_permutations)

    def serves(self, density: Density) -> str | None:
        """Base guides that draw their sites independently."""
        return joint_draws(density)

    def cost(self, density: Density) -> float:
        """Two permanents a group."""
        per_side = (self.num_permutations + 1) * _costs.row_by_row(density)
        return 2 * (_costs.all_unit_pairs(density) + per_side)

    @classmethod
    def candidates(cls, density: Density) -> Sequence[SampledChainRule]:
        """One where importance sampling has no equal: groups that share sites or act on units."""
        estimator = cls(num_affordable(density))
        differs = coupled_sites(density.symmetry) or density.symmetry.acting_groups
        return [estimator] if differs and not estimator.serves(density) else []

    def log_ratio(self, density: Density) -> Tensor:
        """Minus the lower bound on ``I``, differentiable, the proposals held fixed."""
        terms = lower_terms(density.symmetry)
        log_sums = self._log_sums(density, terms, first=0)
        return log_sums - density.log_volume

    def bounds(self, density: Density) -> Bounds:
        """Integrands; the upper one is None where a group permutes two axes of one site."""
        terms = upper_terms(density.symmetry)
        if terms is None:
            return Bounds(-self.log_ratio(density), None)
        upper = density.log_volume - self._log_sums(density, terms, first=1)
        return Bounds(-self.log_ratio(density), upper)

    def _log_sums(self, density: Density, terms: Sequence[Term], first: int) -> Tensor:
        """Sum over the terms of the estimated ``log perm(exp L) - sum_i log q_i(w_i)``.

        A term without sites says nothing about its group, and counts with its order.

        :param first: 0 to count the true permutation among the samples, 1 not to.
        """
        require_served(self, density)
        trivial = identity(density)
        device = trivial[terms[0].group].device
        total = torch.zeros(density.batch_shape, dtype=torch.float64, device=device)
        for group, sites in terms:
            factor = density.symmetry.factor(group)
            if factor.actions:
                unit_actions = density.log_mass(group, sites) if sites else factor.log_unit_orders
                total = total + unit_actions
            if factor.permutes:
                pairs = (
                    density.unit_pairs(group, sites)
                    if sites
                    else torch.zeros(factor.size, factor.size, dtype=torch.float64, device=device)
                )
                pairs = pairs.expand(*density.batch_shape, *pairs.shape[-2:])
                drawn, log_prob = sample_rescaled(pairs, self.num_permutations, trivial[group])
                total = total + log_mean((gather_pairs(pairs, drawn) - log_prob)[first:])
        return total
