r"""Mean field over the permutations of coupled groups.

Layers that share a matrix make ``log q(g . w)`` a quadratic function of their permutations. Mean
field replaces it by one matrix of unit pairs a group,

``M_l[i, j] = E[log q of what belongs to unit j of group l under unit i's factors]``,

the expectation being over independent permutations of the other groups with marginals ``P``, which
are in turn those of ``exp M``. Simplices are left out. It is a function of ``w`` and the parameters
only, and follows a relabelling of ``w``, as long as what it starts from does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.permanent import bethe_permanent
from pyro_perm.symmetry import Axis
from pyro_perm.symmetry.elements import Elements
from pyro_perm.symmetry.separable import separable_sites


def uniform_marginals(density: Density) -> dict[str, Tensor]:
    """Group -> the doubly stochastic matrix with equal entries, shape ``(*batch, n, n)``."""
    device = density.device
    return {
        group: torch.full((*density.batch_shape, n, n), 1 / n, dtype=torch.float64, device=device)
        for group, n in density.symmetry.groups.items()
    }


def expected_pairs(
    density: Density,
    group: str,
    marginals: Mapping[str, Tensor],
    strength: float | Tensor = 1.0,
) -> Tensor:
    """Expected log-density of each unit's values under each unit's factors, in nats.

    :param marginals: group -> probability that unit ``i`` is unit ``j`` of ``w``, shape
        ``(*batch, n, n)``, for the groups that are not in place.
    :param strength: factor of the sites shared with these groups, shape ``(*batch)`` or a number.
    :returns: ``M``, up to a constant for each row, shape ``(*batch, n, n)`` in double precision.
    """
    symmetry = density.symmetry
    in_place = frozenset(symmetry.spec) - frozenset(marginals)
    separable = separable_sites(symmetry, group, in_place)
    size, device = symmetry.groups[group], density.device
    strength = torch.as_tensor(strength, dtype=torch.float64, device=device)[..., None, None]
    nothing = torch.zeros(*density.batch_shape, size, size, dtype=torch.float64, device=device)
    terms = [density.unit_pairs(group, separable)] if separable else []
    for site in symmetry.spec[group]:
        if site not in separable and not symmetry.is_simplex(site):
            for acting, axis in symmetry.actions_on(site):
                if acting == group:
                    pairs = _expected_pairs_of_axis(density, site, axis, marginals)
                    terms.append(strength.to(pairs.device) * pairs)
    return reduce(torch.add, terms, nothing)


def mean_field(
    density: Density, marginals: Mapping[str, Tensor], strengths: Iterable[float]
) -> dict[str, Tensor]:
    """Marginals after one sweep over the groups at each strength of their coupling.

    :param marginals: where to start, group -> shape ``(*batch, n, n)``.
    :param strengths: factors of the shared sites, as in :func:`expected_pairs`.
    :returns: group -> shape ``(*batch, n, n)``, without gradient.
    """
    marginals = dict(marginals)
    for strength in strengths:
        for group in marginals:
            pairs = expected_pairs(density, group, marginals, strength)
            marginals[group] = bethe_permanent(pairs, max_iterations=20, tolerance=1e-3).marginals
    return marginals


def marginals_at(density: Density, permutations: Elements) -> FactorizedDensity:
    """The marginals of a density's entries at ``g . w``, for many ``g``: shape ``(num, *batch)``.

    The density itself where that factorizes. They have its unit pairs in either case.
    """
    values = density.symmetry.apply(permutations, density.values)
    num = next(iter(permutations.values())).shape[0]
    batch_shape = torch.Size((num, *density.batch_shape))
    return FactorizedDensity(
        density.symmetry,
        values,
        density.locs,
        density.scales,
        batch_shape,
        priors=density.priors,
    )


def _expected_pairs_of_axis(
    density: Density, site: str, axis: Axis, marginals: Mapping[str, Tensor]
) -> Tensor:
    rank = density.symmetry.site_rank(site)
    value, loc = density.values[site].double(), density.locs[site].double()
    mean, square = value, value.square()
    for other, other_axis in density.symmetry.actions_on(site):
        if other in marginals and other_axis != axis:
            mixing = _mixing_matrix(marginals[other], other_axis, value)
            mean, square = (_mix(x, mixing, other_axis.dim, rank) for x in (mean, square))
    precision = density.scales[site].double().square().reciprocal()
    linear, quadratic, mean, square = (
        axis.units(x, rank) for x in (precision * loc, precision, mean, square)
    )
    return linear @ mean.mT - 0.5 * quadratic @ square.mT


def _mixing_matrix(marginals: Tensor, axis: Axis, value: Tensor) -> Tensor:
    """The group's marginals as a matrix over the coordinates along one of its axes."""
    length = value.shape[axis.dim]
    coordinates = torch.arange(length, device=value.device)
    units = replace(axis, dim=-1).units(coordinates, 1)
    identity = torch.eye(length, dtype=marginals.dtype, device=marginals.device)
    matrix = identity.repeat(*marginals.shape[:-2], 1, 1)
    matrix[..., units[:, None], units[None]] = marginals[..., None].expand(
        *marginals.shape, units.shape[-1]
    )
    return matrix


def _mix(value: Tensor, matrix: Tensor, dim: int, rank: int) -> Tensor:
    """Apply a matrix with batch dimensions along one dimension of a site."""
    last = value.movedim(dim, -1)
    batch = last.dim() - rank
    flat = last.reshape(*last.shape[:batch], -1, last.shape[-1])
    mixed = flat @ matrix.mT
    return mixed.reshape(*mixed.shape[:-2], *last.shape[batch:]).movedim(-1, dim)
