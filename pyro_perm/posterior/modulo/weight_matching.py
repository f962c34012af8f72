r"""Weight matching: the permutations that bring weights closest to a reference.

They minimize ``sum over sites of |g . w - reference|^2`` (Ainsworth et al. 2023, Section 3.2). In
the permutation of one group, given those of the others, this is a linear assignment problem,

``max over g of sum_i M[i, g(i)]``, where ``M[i, j] = <unit i of the reference, unit j of w>``,

solved exactly; where units flip their signs, ``M`` is the larger of the two products with unit
``j`` and with minus unit ``j``. Groups that share sites are solved by coordinate descent from
several starts. For a group that permutes two axes of one site (a recurrent weight) the assignment
is that of the cost linearized at the permutation at hand, and is accepted where the cost falls; up
to 16 units, so are swaps of two units and flips of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_perm.symmetry import Axis, SymmetryGroup
from pyro_perm.symmetry.separable import coupled_sites

Values = Mapping[str, Tensor]
_PAIRS_AT_ONCE = 2**23
_MOST_UNITS_SWAPPED = 16


@dataclass(frozen=True)
class Matching:
    """Draws, and what they are to be brought close to.

    Attributes:
        symmetry: the group, bound to a model.
        values: site of the symmetry -> shape ``(draws, *site shape)``.
        reference: site -> shape of the site.
    """

    symmetry: SymmetryGroup
    values: Values
    reference: Values

    @property
    def num_draws(self) -> int:
        """Number of draws."""
        return len(next(iter(self.values.values())))

    def moved(self, permutations: Values) -> Matching:
        """The same with permuted draws."""
        return replace(self, values=self.symmetry.apply(permutations, self.values))

    def squared_distance(self, permutations: Values) -> Tensor:
        """``|g . w - reference|^2``, shape ``(draws,)``, in double precision."""
        total = torch.zeros((), dtype=torch.float64)
        for site, value in self.symmetry.apply(permutations, self.values).items():
            square = (value.double() - self.reference[site].double()).square()
            total = total.to(square.device) + square.flatten(1).sum(-1)
        return total


def match(problem: Matching, num_restarts: int) -> dict[str, Tensor]:
    """The permutations that bring every draw closest to the reference.

    Coupled groups start from the order at hand, from the mean over groups that have no permutation
    yet (as at the centre of the doubly stochastic matrices, Vogelstein et al. 2015), and from
    random permutations, which are the same in every call.

    :param num_restarts: number of random starts, of coupled groups.
    :returns: group -> permutation, shape ``(draws, n)``.
    """
    best = descend(problem, _repeated(problem, _identity(problem.symmetry)))
    if not coupled_sites(problem.symmetry):
        return best
    for start in (_start_from_means(problem), *_random_starts(problem, num_restarts)):
        other = descend(problem, start)
        closer = problem.squared_distance(other) < problem.squared_distance(best)
        best = {g: torch.where(closer[:, None], other[g], best[g]) for g in best}
    return best


def descend(problem: Matching, permutations: Values) -> dict[str, Tensor]:
    """Coordinate descent until no group moves, from permutations of shape ``(draws, n)``."""
    current = dict(permutations)
    while True:
        before = current
        for group in current:
            current = step(problem, current, group)
        if all(torch.equal(current[group], before[group]) for group in current):
            return current


def step(problem: Matching, permutations: Values, group: str) -> dict[str, Tensor]:
    """Assign one group's units, given the others, in every draw that this brings closer."""
    assigned = _assignment(problem.moved(permutations), group)
    for move in (assigned, *_small_moves(problem.symmetry, group)):
        permutations = _where_closer(problem, permutations, group, move)
    return dict(permutations)


def _where_closer(
    problem: Matching, permutations: Values, group: str, element: Tensor
) -> dict[str, Tensor]:
    """Act with a further element of one group on every draw that this brings closer."""
    element = element.to(permutations[group].device)
    own = {group: permutations[group]}
    there = {**permutations, **problem.symmetry.compose({group: element}, own)}
    closer = problem.squared_distance(there) < problem.squared_distance(permutations)
    return there | {group: torch.where(closer[:, None], there[group], own[group])}


def _small_moves(symmetry: SymmetryGroup, group: str) -> list[Tensor]:
    """Swaps and flips, if the cost is quadratic in the permutation of a group of few units."""
    size = symmetry.groups[group]
    quadratic = any(len(axes) > 1 for axes in symmetry.spec[group].values())
    if not quadratic or size > _MOST_UNITS_SWAPPED:
        return []
    identity = torch.arange(size)
    flips = torch.eye(size, dtype=torch.bool)[: size if group in symmetry.signed_groups else 0]
    moves = [torch.where(flip, ~identity, identity) for flip in flips]
    for i, j in combinations(range(size), 2):
        swap = identity.clone()
        swap[[i, j]] = swap[[j, i]]
        moves.append(swap)
    return moves


def _assignment(problem: Matching, group: str, pending: frozenset[str] = frozenset()) -> Tensor:
    """The best permutation of one group, shape ``(draws, n)``.

    :param pending: groups that have no permutation yet: the mean over theirs counts.
    """
    at_once = max(1, _PAIRS_AT_ONCE // problem.symmetry.groups[group] ** 2)
    elements = []
    for start in range(0, problem.num_draws, at_once):
        values = {site: value[start : start + at_once] for site, value in problem.values.items()}
        plain, flipping = _products(replace(problem, values=values), group, pending)
        gains = (plain + flipping.abs()).cpu().numpy()
        columns = np.stack([linear_sum_assignment(draw, maximize=True)[1] for draw in gains])
        units = torch.from_numpy(columns).to(plain.device)
        is_flipped = flipping.gather(-1, units.unsqueeze(-1)).squeeze(-1) < 0
        elements.append(torch.where(is_flipped, ~units, units))
    return torch.cat(elements)


def _products(problem: Matching, group: str, pending: frozenset[str]) -> tuple[Tensor, Tensor]:
    """``M`` of the axes along which units keep their sign, and of those along which they flip.

    :returns: shape ``(draws, n, n)`` each, in double precision.
    """
    symmetry = problem.symmetry
    size, device = symmetry.groups[group], next(iter(problem.values.values())).device
    shape = (problem.num_draws, size, size)
    plain, flipping = torch.zeros(2, *shape, dtype=torch.float64, device=device)
    for site in symmetry.spec[group]:
        rank, acting = symmetry.site_rank(site), symmetry.actions_on(site)
        for axis in (axis for other, axis in acting if other == group):
            value = problem.values[site].double()
            for other, other_axis in acting:
                if other in pending and other_axis != axis:
                    value = _mean_over_the_group(value, other_axis, rank)
            reference = axis.units(problem.reference[site].double(), rank)
            total = flipping if axis.sign else plain
            total += reference @ axis.units(value, rank).mT
    return plain, flipping


def _mean_over_the_group(value: Tensor, axis: Axis, rank: int) -> Tensor:
    units = axis.units(value, rank)
    mean = torch.zeros_like(units) if axis.sign else units.mean(-2, keepdim=True).expand_as(units)
    return value + axis.from_units(mean - units, value.shape[-rank:])


def _start_from_means(problem: Matching) -> dict[str, Tensor]:
    permutations: dict[str, Tensor] = {}
    for group in problem.symmetry.spec:
        pending = frozenset(problem.symmetry.spec) - frozenset(permutations)
        permutations[group] = _assignment(problem.moved(permutations), group, pending)
    return permutations


def _random_starts(problem: Matching, num: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(num):
        yield _repeated(problem, problem.symmetry.sample(generator=generator))


def _identity(symmetry: SymmetryGroup) -> dict[str, Tensor]:
    return {group: torch.arange(size) for group, size in symmetry.groups.items()}


def _repeated(problem: Matching, element: Values) -> dict[str, Tensor]:
    """The same element for every draw."""
    device = next(iter(problem.values.values())).device
    return {g: p.to(device).expand(problem.num_draws, -1) for g, p in element.items()}
