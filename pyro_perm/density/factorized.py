r"""The density of a factorized Gaussian base guide, seen unit by unit.

For a group of ``n`` units, let ``L[i, j] = log q_i(w_j)``: the log-density of everything that
belongs to sampled unit ``j`` (incoming row, bias, outgoing column) under unit ``i``'s variational
factor. Then ``log q(g . w) = sum_i L[i, g(i)]`` plus what no permutation changes, and
``sum_g q(g . w)`` is the permanent of ``exp L``.

Where units flip their signs, the sum over the signs factorizes: ``L`` becomes
``log(q_i(w_j) + q_i(-w_j)) = log q_i(w_j) + softplus(-2 O[i, j])``, where the part of
``log q_i(w_j)`` that is odd is ``O[i, j] = sum_d w_jd m_id / s_id^2`` over the entries that flip.

A Dirichlet's weights are not permuted in unconstrained space, where stick-breaking gives them one
coordinate less. Their density ``N(u(w)) / |dw/du|`` is evaluated at ``g . w`` itself, outside of
``L``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.nn.functional import softplus

from pyro_perm.permanent._tracing import is_tracing
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.binding import dims_of_events, unwrapped
from pyro_perm.symmetry.group import Permutations
from pyro_perm.symmetry.separable import elementwise_sites, separable_sites
from pyro_perm.symmetry.unit_layout import UnitLayout

STICK_BREAKING = biject_to(constraints.simplex)
_WORTH_SINGLE_PRECISION = 1_000_000
# Distance from the center in scales, whose square times the machine epsilon is what rounding costs.
_HARMLESS_IN_SINGLE_PRECISION = 54.0


class Units(NamedTuple):
    """Unit-wise view of part of the density, shapes ``(*batch, n, entries of a unit)``."""

    values: Tensor
    locs: Tensor
    scales: Tensor


@dataclass(frozen=True)
class FactorizedDensity:
    """A factorized Gaussian ``q`` over the sites of a symmetry, and a draw ``w`` from it.

    Attributes:
        symmetry: the symmetry, bound to the model.
        values: site -> sampled value in unconstrained space, shape ``(*batch, *site shape)``; on
            the simplex itself for a site of probability vectors.
        locs: site -> loc in unconstrained space, ``(*batch, *site shape)``, or without the batch
            where all particles share it.
        scales: site -> scale, as ``locs``.
        batch_shape: shape of the particles' batch.
        factorizes: whether the density is that of independent entries; if not, unit pairs are those
            of its marginals.
    """

    factorizes: ClassVar[bool] = True

    symmetry: SymmetryGroup
    values: dict[str, Tensor]
    locs: dict[str, Tensor]
    scales: dict[str, Tensor]
    batch_shape: torch.Size

    def redrawn(self, num: int) -> FactorizedDensity:
        """Fresh draws of ``w`` as a batch; for parameters without one."""
        values = {}
        for site, loc in self.locs.items():
            noise = torch.randn(num, *loc.shape, dtype=loc.dtype, device=loc.device)
            value = loc + self.scales[site] * noise
            simplex = self.symmetry.is_simplex(site)
            values[site] = STICK_BREAKING(value.double()) if simplex else value
        return replace(self, values=values, batch_shape=torch.Size([num]))

    @property
    def draws_require_grad(self) -> bool:
        """Whether autograd can reach the parameters through the draw."""
        return any(value.requires_grad for value in self.values.values())

    def with_fixed_draws(self) -> FactorizedDensity:
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

        Summed over the signs of ``w_j`` if the group flips them.

        :returns: shape ``(*batch, n, n)``, in double precision.
        """
        sites = tuple(sites)
        flips = UnitLayout.of(self.symmetry, group, sites).flips
        units = centered(self.units(group, sites), flips)
        return unit_pairs(units, pair_factors(units), flips)

    def log_flips(self, group: str, sites: Iterable[str]) -> Tensor:
        """``log sum_s q(s . w) / q(w)`` over the signs ``s`` of a group that flips them.

        :param sites: sites of the group that count.
        :returns: shape ``(*batch)``, in nats and double precision.
        """
        sites = tuple(sites)
        flips = UnitLayout.of(self.symmetry, group, sites).flips
        assert flips is not None
        units = centered(self.units(group, sites), flips)
        odd = (_odd_weights(units, flips) * units.values).sum(-1, dtype=torch.float64)
        return _log_sum_of_signs(odd).sum(-1)

    def log_ratio(self, permutations: Permutations) -> Tensor:
        """``log q(g . w) - log q(w)`` for many ``g`` at the cost of a gather each.

        :param permutations: a permutation for every group, shape ``(num, *batch, n)``.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """
        elementwise = elementwise_sites(self.symmetry)
        total = self._log_ratio_of_sites(permutations, elementwise)
        for group, permutation in permutations.items():
            sites = [s for s in separable_sites(self.symmetry, group) if s not in elementwise]
            if sites:
                total = total + gather_pairs(self.unit_pairs(group, sites), permutation)
        return total

    def coinciding_groups(self) -> list[str]:
        """Groups whose units all have the same variational factor: saddles of the objective."""
        return [group for group in self.symmetry.spec if self._coincides(group)]

    def _coincides(self, group: str) -> bool:
        if self.symmetry.groups[group] == 1:
            return False
        permutation = {group: torch.arange(self.symmetry.groups[group]).roll(1)}
        sites = [s for s in self.symmetry.spec[group] if not self.symmetry.is_simplex(s)]
        parameters = ({s: tensors[s] for s in sites} for tensors in (self.locs, self.scales))
        return bool(sites) and all(
            torch.equal(moved, tensors[site])
            for tensors in parameters
            for site, moved in self.symmetry.apply(permutation, tensors).items()
        )

    def _log_ratio_of_sites(self, permutations: Permutations, sites: Iterable[str]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for site in sites:
            log_ratio = self._log_ratio_of_site(permutations, site)
            total = total.to(log_ratio.device) + log_ratio
        return total

    def _log_ratio_of_site(self, permutations: Permutations, site: str) -> Tensor:
        value, loc, scale = self.values[site], self.locs[site], self.scales[site]
        moved = self.symmetry.apply(permutations, {site: value})[site]
        rank, log_volume = self.symmetry.site_rank(site), None
        if self.symmetry.is_simplex(site):
            (value, before), (moved, after) = map(_stick_lengths, (value, moved))
            log_volume = sum_rightmost(before - after, rank - 1)
        change = ((value - loc) / scale).square() - ((moved - loc) / scale).square()
        gain = 0.5 * change.sum(tuple(range(-rank, 0)), dtype=torch.float64)
        return gain if log_volume is None else gain + log_volume


class PairFactors(NamedTuple):
    """Factors of the quadratic part of the unit pairs: ``-1/2 left @ right.mT``.

    Attributes:
        left: precisions, and precisions times locs, side by side, shape ``(*batch, n, 2 width)``.
        right: squared values, and -2 times the values.
    """

    left: Tensor
    right: Tensor


def pair_factors(units: Units) -> PairFactors:
    """The factors, from units relative to a common center (see :func:`centered`)."""
    values, locs, scales = units
    precision = scales.square().reciprocal()
    return PairFactors(
        torch.cat([precision, precision * locs], -1), torch.cat([values.square(), -2 * values], -1)
    )


def unit_pairs(units: Units, factors: PairFactors, flips: Tensor | None = None) -> Tensor:
    """Log-density of every unit's values under every unit's factor, by one matrix product.

    :param units: units relative to a common center, see :func:`centered`.
    :param factors: those of the units.
    :param flips: which entries change sign, to sum over the signs of every unit.
    :returns: ``L[i, j] = log q_i(w_j) + constant``, shape ``(*batch, n, n)``, double precision.
    """
    precision, weighted = factors.left.chunk(2, -1)
    constant = (weighted * units.locs - precision.log()).sum(-1, keepdim=True)
    squares = factors.left @ factors.right.mT
    pairs = -0.5 * (squares.double() + constant.double())
    return pairs if flips is None else pairs + _log_sum_of_signs(odd_pairs(units, flips))


def odd_pairs(units: Units, flips: Tensor) -> Tensor:
    """The odd part of the unit pairs, ``(log q_i(w_j) - log q_i(-w_j)) / 2``.

    :param units: as for :func:`unit_pairs`; what flips is not centered.
    :param flips: which entries change sign, shape ``(entries of a unit,)``.
    :returns: shape ``(*batch, n, n)``, double precision.
    """
    return (_odd_weights(units, flips) @ units.values.mT).double()


def _odd_weights(units: Units, flips: Tensor) -> Tensor:
    weights: Tensor = units.locs / units.scales.square()
    return weights * flips.to(weights)


def _log_sum_of_signs(odd: Tensor) -> Tensor:
    """``log(1 + exp(-2 odd))``."""
    return softplus(-2 * odd, threshold=40)


def centered(units: Units, flips: Tensor | None = None) -> Units:
    """Units relative to the mean loc, in the precision that their squares need.

    Entries that flip stay relative to zero.

    Expanding squares loses what is common to ``w^2``, ``2 w m`` and ``m^2`` to rounding, about
    ``w^2 / s^2`` times the machine epsilon: nats in single precision where scales are small. Single
    precision serves only where that is harmless and double precision would cost time.
    """
    values, locs, scales = units
    center = locs.mean(-2, keepdim=True).detach()
    if flips is not None:
        center = center.masked_fill(flips.to(center.device), 0.0)
    worthwhile = locs.shape[-2] * locs.numel() > _WORTH_SINGLE_PRECISION
    if locs.dtype == torch.float32 and worthwhile and not is_tracing():
        single = Units(values - center, locs - center, scales)
        distances = torch.linalg.vector_norm((single.values / scales).detach(), dim=-1)
        if float(distances.max()) < _HARMLESS_IN_SINGLE_PRECISION:
            return single
    return Units(values.double() - center, locs.double() - center, scales.double())


def gather_pairs(pairs: Tensor, permutation: Tensor) -> Tensor:
    """``sum_i (L[i, g(i)] - L[i, i])``.

    :param pairs: shape ``(*batch, n, n)``.
    :param permutation: shape ``(num, *batch, n)``.
    :returns: shape ``(num, *batch)``.
    """
    picked = torch.take_along_dim(pairs.unsqueeze(0), permutation.unsqueeze(-1), -1).squeeze(-1)
    return (picked - pairs.diagonal(dim1=-2, dim2=-1)).sum(-1)


def require_tractable_supports(trace: Any, symmetry: SymmetryGroup) -> None:
    """Refuse sites whose density at permuted values is not known here.

    :param trace: a trace of the model.
    :raises TypeError: naming the site and its support.
    """
    for name in symmetry.sites:
        support = unwrapped(trace.nodes[name]["fn"].support)
        acting = symmetry.actions_on(name)
        flipping = [group for group, axis in acting if axis.sign]
        if flipping and not isinstance(support, type(constraints.real)):
            raise TypeError(
                f"group '{flipping[0]}', site '{name}': its support is {support}, and only values "
                "on the whole real line can change their sign; give the axis without sign=True"
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
