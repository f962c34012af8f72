r"""Weight matching: the permutations that bring weights closest to a reference.

They minimize ``sum over sites of |g . w - reference|^2`` (Ainsworth et al. 2023, Section 3.2). In
the permutation of one group, given those of the others, this is a linear assignment problem, solved
exactly; groups that share sites are solved by coordinate descent from several starts. For a group
that permutes two axes of one site (a recurrent weight) the assignment is that of the cost
linearized at the permutation at hand, and is accepted where the cost falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_perm.estimators.coupling import coupled_sites
from pyro_perm.estimators.density import FactorizedDensity
from pyro_perm.estimators.mean_field import expected_pairs, uniform_marginals
from pyro_perm.symmetry import PermutationSymmetry

Values = Mapping[str, Tensor]
_PAIRS_AT_ONCE = 2**23


def matching_problem(
    values: Values, reference: Values, symmetry: PermutationSymmetry
) -> FactorizedDensity:
    """The unit Gaussian around the reference: matching maximizes its density over the group.

    :param values: site -> shape ``(draws, *site shape)``.
    :param reference: site -> shape of the site.
    """
    return FactorizedDensity(
        symmetry,
        values={site: values[site] for site in symmetry.sites},
        locs={site: reference[site] for site in symmetry.sites},
        scales={site: torch.ones_like(reference[site]) for site in symmetry.sites},
        batch_shape=next(iter(values.values())).shape[:1],
    )


def match(problem: FactorizedDensity, num_restarts: int) -> dict[str, Tensor]:
    """The permutations that bring every draw closest to the reference.

    Coupled groups start from the order at hand, from mean field (every group in turn, given uniform
    doubly stochastic matrices of those to come, as in Vogelstein et al. 2015), and from random
    permutations, which are the same in every call.

    :param num_restarts: number of random starts, of coupled groups.
    :returns: group -> permutation, shape ``(draws, n)``.
    """
    identity = _identity(problem)
    best = descend(problem, identity)
    if not coupled_sites(problem.symmetry):
        return best
    starts = [_mean_field_start(problem), *_random_starts(problem, num_restarts)]
    for start in starts:
        other = descend(problem, start)
        closer = squared_distance(problem, other) < squared_distance(problem, best)
        best = {g: torch.where(closer[:, None], other[g], best[g]) for g in best}
    return best


def descend(problem: FactorizedDensity, permutations: Values) -> dict[str, Tensor]:
    """Coordinate descent until no group moves, from permutations of shape ``(draws, n)``."""
    current = dict(permutations)
    while True:
        before = current
        for group in current:
            current = step(problem, current, group)
        if all(torch.equal(current[group], before[group]) for group in current):
            return current


def step(problem: FactorizedDensity, permutations: Values, group: str) -> dict[str, Tensor]:
    """Assign one group's units, given the others, in every draw that this brings closer."""
    here = _moved(problem, permutations)
    assigned = permutations[group].gather(-1, _assignment(here, group))
    there = {**permutations, group: assigned}
    closer = squared_distance(problem, there) < squared_distance(problem, permutations)
    return there | {group: torch.where(closer[:, None], assigned, permutations[group])}


def squared_distance(problem: FactorizedDensity, permutations: Values) -> Tensor:
    """``|g . w - reference|^2``, shape ``(draws,)``, in double precision."""
    total = torch.zeros((), dtype=torch.float64)
    for site, value in problem.symmetry.apply(permutations, problem.values).items():
        square = (value.double() - problem.locs[site].double()).square()
        total = total.to(square.device) + square.flatten(1).sum(-1)
    return total


def _assignment(
    problem: FactorizedDensity, group: str, pending: frozenset[str] = frozenset()
) -> Tensor:
    """The best permutation of one group, shape ``(draws, n)``.

    :param pending: groups that have no permutation yet, and count on average.
    """
    at_once = max(1, _PAIRS_AT_ONCE // problem.symmetry.groups[group] ** 2)
    columns = []
    for start in range(0, problem.batch_shape[0], at_once):
        values = {site: value[start : start + at_once] for site, value in problem.values.items()}
        batch_shape = next(iter(values.values())).shape[:1]
        part = replace(problem, values=values, batch_shape=batch_shape)
        uniform = uniform_marginals(part)
        pairs = expected_pairs(part, group, {other: uniform[other] for other in pending})
        columns += [linear_sum_assignment(draw, maximize=True)[1] for draw in pairs.cpu().numpy()]
    return torch.from_numpy(np.stack(columns)).to(pairs.device)


def _mean_field_start(problem: FactorizedDensity) -> dict[str, Tensor]:
    permutations: dict[str, Tensor] = {}
    for group in problem.symmetry.spec:
        pending = frozenset(problem.symmetry.spec) - frozenset(permutations)
        permutations[group] = _assignment(_moved(problem, permutations), group, pending)
    return permutations


def _random_starts(problem: FactorizedDensity, num: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draws = problem.batch_shape
    for _ in range(num):
        start = problem.symmetry.sample((), generator=generator)
        yield {g: _like(problem, p).expand(*draws, -1) for g, p in start.items()}


def _identity(problem: FactorizedDensity) -> dict[str, Tensor]:
    draws, groups = problem.batch_shape, problem.symmetry.groups
    return {g: _like(problem, torch.arange(n)).expand(*draws, n) for g, n in groups.items()}


def _like(problem: FactorizedDensity, permutation: Tensor) -> Tensor:
    return permutation.to(next(iter(problem.values.values())).device)


def _moved(problem: FactorizedDensity, permutations: Values) -> FactorizedDensity:
    return replace(problem, values=problem.symmetry.apply(permutations, problem.values))
