r"""Importance sampling over permutations, with both bounds from one set of draws.

With ``g_1 ... g_K`` from a proposal ``tau(g | w)``, ``g_0`` the true permutation, and the weights
``v_k = q(g_k w) / (|G| tau(g_k | w))``,

``log 1/K sum_{k >= 1} v_k <= log q^G(w) <= log 1/(K+1) sum_{k >= 0} v_k``

in expectation over ``w ~ q^G`` (Burda et al. 2016; Sobolev & Vetrov 2019): given ``w`` the true
permutation is a draw from the posterior, and the others must be independent of it. So ``tau`` must
be a function of ``w`` and the parameters. ``K = 0`` is the bound of Barber & Agakov (2003),
``I >= E[log tau(g_0 | w)] + log |G|``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.estimators import _proposal
from pyro_perm.estimators._proposal import fit_proposal, identity, log_mean, num_affordable
from pyro_perm.estimators.estimator import (
    Bounds,
    Estimator,
    refuse_gradient,
    register_estimator,
    require_served,
    unit_actions,
)
from pyro_perm.symmetry.separable import coupled_sites


@register_estimator
@dataclass(frozen=True)
class ImportanceSampled(Estimator):
    """Permutations from a proposal that is fitted to ``w`` and the parameters.

    Its ``log_ratio`` bounds ``log q^G`` from above, so ``I(g; w)`` from below; the gradient goes
    through the weights, and holds the proposal fixed.

    :param num_permutations: ``K``, the number of draws beside the true permutation; 0 leaves only
        a lower bound, which has no gradient.
    :raises ValueError: if it is negative or not an int.
    """

    num_permutations: int

    is_lower_bound = True
    method = "importance sampling"

    def __post_init__(self) -> None:
        if not isinstance(self.num_permutations, int) or self.num_permutations < 0:
            raise ValueError(
                f"num_permutations must be an int of at least 0, but is {self.num_permutations!r}"
            )

    def serves(self, density: Density) -> str | None:
        """Groups that permute units and nothing else, or share no site with each other."""
        symmetry = density.symmetry
        permutes = all(factor.permutes for factor in symmetry.factors)
        return None if permutes and not coupled_sites(symmetry) else unit_actions(density)

    def cost(self, density: Density) -> float:
        """Fitting the proposals, and drawing from one of them."""
        return _proposal.cost(density, self.num_permutations + 1)

    @classmethod
    def candidates(cls, density: Density) -> Sequence[ImportanceSampled]:
        """One with fewer permutations where they are wide."""
        estimator = cls(num_affordable(density))
        return [] if estimator.serves(density) else [estimator]

    def log_ratio(self, density: Density) -> Tensor:
        """``log 1/(K+1) sum_{k >= 0} q(g_k w) / (q(w) |G| tau(g_k | w))``.

        :raises ValueError: if it does not serve; at backpropagation, if ``K = 0``.
        """
        log_ratio = log_mean(self._log_weights(density)) - density.log_volume
        if self.num_permutations:
            return log_ratio
        return refuse_gradient(self, log_ratio.detach(), density)

    def bounds(self, density: Density) -> Bounds:
        """Integrands for both bounds on the mutual information; no upper one if ``K = 0``."""
        log_weights = self._log_weights(density)
        order = density.log_volume
        upper = order - log_mean(log_weights[1:]) if self.num_permutations else None
        return Bounds(order - log_mean(log_weights), upper)

    def _log_weights(self, density: Density) -> Tensor:
        """``log q(g_k w) - log q(w) - log tau(g_k | w)``, the true one first: ``(K+1, *batch)``.

        Summed over the images of the units, which the proposal does not tell apart.
        """
        require_served(self, density)
        proposal = fit_proposal(density)
        permutations, log_prob = proposal.draw(self.num_permutations, identity(density))
        return density.log_orbit_ratio(permutations) - log_prob
