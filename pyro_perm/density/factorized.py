r"""The density of a factorized Gaussian base guide.

With its unit pairs ``L``, ``log q(g . w) = sum_i L[i, g(i)]`` plus what no permutation changes, and
``sum_g q(g . w)`` is the permanent of ``exp L``.

A Dirichlet's weights are not permuted in unconstrained space, where stick-breaking gives them one
coordinate less. Their density ``N(u(w)) / |dw/du|`` is evaluated at ``g . w`` itself, outside of
``L``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_perm.density.density import Density, gather_pairs
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.binding import dims_of_events, unwrapped
from pyro_perm.symmetry.elements import Elements, as_element
from pyro_perm.symmetry.separable import elementwise_sites, separable_sites

STICK_BREAKING = biject_to(constraints.simplex)


@dataclass(frozen=True)
class FactorizedDensity(Density):
    """Independent Gaussian entries."""

    factorizes: ClassVar[bool] = True

    def log_ratio(self, permutations: Elements) -> Tensor:
        """``log q(g . w) - log q(w)`` for many ``g`` at the cost of a gather each.

        :param permutations: an element of every group, shape ``(num, *batch, n)``.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """
        elementwise = elementwise_sites(self.symmetry)
        total = self._log_ratio_of_sites(permutations, elementwise)
        for group, permutation in permutations.items():
            sites = [s for s in separable_sites(self.symmetry, group) if s not in elementwise]
            if sites:
                units = as_element(permutation).permutation
                total = total + gather_pairs(self.unit_pairs(group, sites), units)
        return total

    def _log_ratio_of_sites(self, permutations: Elements, sites: Iterable[str]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for site in sites:
            log_ratio = self._log_ratio_of_site(permutations, site)
            total = total + log_ratio
        return total

    def _log_ratio_of_site(self, permutations: Elements, site: str) -> Tensor:
        value, loc, scale = self.values[site], self.locs[site], self.scales[site]
        moved = self.symmetry.apply(permutations, {site: value})[site]
        rank, log_volume = self.symmetry.site_rank(site), None
        if self.symmetry.is_simplex(site):
            (value, before), (moved, after) = map(_stick_lengths, (value, moved))
            log_volume = sum_rightmost(before - after, rank - 1)
        change = ((value - loc) / scale).square() - ((moved - loc) / scale).square()
        gain = 0.5 * change.sum(tuple(range(-rank, 0)), dtype=torch.float64)
        return gain if log_volume is None else gain + log_volume


def require_tractable_supports(trace: Any, symmetry: SymmetryGroup) -> None:
    """Refuse sites whose density after the action is not known here.

    :param trace: a trace of the model.
    :raises TypeError: naming the site and its support.
    """
    for name in symmetry.sites:
        support = unwrapped(trace.nodes[name]["fn"].support)
        acting = symmetry.actions_on(name)
        for group, axis in acting:
            for action in symmetry.factor(group).actions:
                refusal = action.refusal(support) if action.degree(axis) else None
                if refusal:
                    raise TypeError(
                        f"group '{group}', site '{name}': its support is {support}, and {refusal}"
                    )
        within = [group for group, axis in acting if axis.dim >= -dims_of_events(support)]
        if within and not symmetry.is_simplex(name):
            group = within[0]
            raise TypeError(
                f"group '{group}', site '{name}': its support {support} is neither a product of "
                "intervals nor a simplex, so a permutation of its entries does not permute the "
                "base guide's unconstrained factors; leave the group out, or reparametrize the site"
            )


def _stick_lengths(value: Tensor) -> tuple[Tensor, Tensor]:
    """A point of the simplex in unconstrained space, and ``log |dw/du|`` there."""
    unconstrained = STICK_BREAKING.inv(value)
    return unconstrained, STICK_BREAKING.log_abs_det_jacobian(unconstrained, value)
