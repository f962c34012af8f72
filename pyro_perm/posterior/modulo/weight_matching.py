r"""Weight matching: the permutations that bring weights closest to a reference.

They minimize ``sum over sites of |g . w - reference|^2`` (Ainsworth et al. 2023, Section 3.2).
Running moments and second names of parameters, which only go along, do not count. In the
permutation of one group, given those of the others, this is a linear assignment problem,

``max over g of sum_i M[i, g(i)]``, where ``M[i, j] = <unit i of the reference, unit j of w>``,

solved exactly; where the group acts on each unit by itself, ``M`` is the largest of the products
with the images of unit ``j``. Groups that share sites are solved by coordinate descent from several
starts. For a group that permutes two axes of one site (a recurrent weight) the assignment is that
of the cost linearized at the permutation at hand, and is accepted where the cost falls; up to 16
units, so are swaps of two units and other images of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product

import numpy as np
import scipy
import torch
from torch import Tensor

from pyro_perm.symmetry import Axis, SymmetryGroup
from pyro_perm.symmetry.elements import (
    AnyElement,
    Elements,
    compose,
    concatenate,
    equal,
    transform,
    where,
)
from pyro_perm.symmetry.factor import Factor, Motion
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

    @property
    def device(self) -> torch.device:
        """Where the draws are."""
        return next(iter(self.values.values())).device

    def move(self, permutations: Elements) -> Matching:
        """The same with permuted draws."""
        return replace(self, values=self.symmetry.apply(permutations, self.values))

    def squared_distance(self, permutations: Elements) -> Tensor:
        """``|g . w - reference|^2``, shape ``(draws,)``, in double precision."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        counted = {s: v for s, v in self.values.items() if not self.symmetry.follows(s)}
        for site, value in self.symmetry.apply(permutations, counted).items():
            square = (value.double() - self.reference[site].double()).square()
            total = total + square.flatten(1).sum(-1)
        return total


def match(problem: Matching, num_restarts: int) -> dict[str, AnyElement]:
    """The permutations that bring every draw closest to the reference.

    Coupled groups start from the order at hand, from the mean over groups that have no permutation
    yet (as at the centre of the doubly stochastic matrices, Vogelstein et al. 2015), and from
    random permutations, which are the same in every call.

    :param num_restarts: number of random starts, of coupled groups.
    :returns: group -> permutation or element, shape ``(draws, n)``.
    """
    best = descend(problem, _repeat_for_draws(problem, _identity(problem.symmetry)))
    if not coupled_sites(problem.symmetry):
        return best
    for start in (_start_from_means(problem), *_random_starts(problem, num_restarts)):
        other = descend(problem, start)
        closer = problem.squared_distance(other) < problem.squared_distance(best)
        best = {g: where(closer[:, None], other[g], best[g]) for g in best}
    return best


def descend(problem: Matching, permutations: Elements) -> dict[str, AnyElement]:
    """Coordinate descent until no group moves, from permutations of shape ``(draws, n)``."""
    current = dict(permutations)
    while True:
        before = current
        for group in current:
            current = step(problem, current, group)
        if all(equal(current[group], before[group]) for group in current):
            return current


def step(problem: Matching, permutations: Elements, group: str) -> dict[str, AnyElement]:
    """Assign one group's units, given the others, in every draw that this brings closer."""
    assigned = _assignment(problem.move(permutations), group)
    own, distances = permutations[group], problem.squared_distance(permutations)
    for move in (assigned, *_small_moves(problem, group)):
        there = compose(move, own)
        distances_there = problem.squared_distance({**permutations, group: there})
        closer = distances_there < distances
        own = where(closer[:, None], there, own)
        distances = torch.where(closer, distances_there, distances)
    return {**permutations, group: own}


def _small_moves(problem: Matching, group: str) -> list[AnyElement]:
    """Other images of one unit and swaps of two, if a group of few units acts on two axes."""
    factor = problem.symmetry.factor(group)
    size, sites = factor.size, [site for site, _ in factor.axes]
    if len(set(sites)) == len(sites) or size > _MOST_UNITS_SWAPPED:
        return []
    identity, images = factor.identity(problem.device), _images(problem, factor)
    moves: list[AnyElement] = []
    for unit, number in product(range(size), range(1, images.shape[0])):
        alone = partial(_image_of_one, unit=identity == unit, number=number)
        moves.append(transform(alone, images))
    for i, j in combinations(range(size if factor.permutes else 0), 2):
        swap = identity.clone()
        swap[[i, j]] = swap[[j, i]]
        moves.append(swap)
    return moves


def _image_of_one(images: Tensor, unit: Tensor, number: int) -> Tensor:
    return torch.where(unit, images[number], images[0])


def _assignment(problem: Matching, group: str, pending: frozenset[str] = frozenset()) -> AnyElement:
    """The best element of one group, shape ``(draws, n)``.

    :param pending: groups that have no permutation yet: the mean over theirs counts.
    """
    factor = problem.symmetry.factor(group)
    images = _images(problem, factor)
    at_once = max(1, _PAIRS_AT_ONCE // (images.shape[0] * factor.size**2))
    elements = []
    for start in range(0, problem.num_draws, at_once):
        values = {site: value[start : start + at_once] for site, value in problem.values.items()}
        gains, number = _gains(replace(problem, values=values), factor, pending)
        units = _best_units(gains) if factor.permutes else factor.identity(gains.device)
        units = units.expand(gains.shape[:-1])
        chosen = number.gather(-1, units.unsqueeze(-1)).squeeze(-1)
        image = transform(partial(torch.gather, dim=0, index=chosen), images)
        elements.append(compose(image, units))
    return concatenate(elements)


def _best_units(gains: Tensor) -> Tensor:
    draws = gains.cpu().numpy()
    assign = partial(scipy.optimize.linear_sum_assignment, maximize=True)
    columns = np.stack([assign(draw)[1] for draw in draws])
    return torch.from_numpy(columns).to(gains.device)


def _gains(problem: Matching, factor: Factor, pending: frozenset[str]) -> tuple[Tensor, Tensor]:
    """``M``, and the number of the image that each of its entries is due to.

    :returns: shape ``(draws, n, n)`` each, the former in double precision.
    """
    identity, *motions = factor.image_motions()
    gains = _products(problem, factor, identity, pending)
    number = torch.zeros_like(gains, dtype=torch.long)
    for other, motion in enumerate(motions, start=1):
        products = _products(problem, factor, motion, pending)
        better = products > gains
        gains = torch.where(better, products, gains)
        number = torch.where(better, other, number)
    return gains, number


def _products(problem: Matching, factor: Factor, motion: Motion, pending: frozenset[str]) -> Tensor:
    """Products of the reference's units with an image of the units of each draw."""
    symmetry = problem.symmetry
    shape = (problem.num_draws, factor.size, factor.size)
    total = torch.zeros(shape, dtype=torch.float64, device=problem.device)
    for site in symmetry.spec[factor.name]:
        if symmetry.follows(site):
            continue
        rank, acting = symmetry.site_rank(site), symmetry.actions_on(site)
        for axis in (axis for other, axis in acting if other == factor.name):
            value = problem.values[site].double()
            for other, other_axis in acting:
                if other in pending and other_axis != axis:
                    value = _mean_over(symmetry.factor(other), value, other_axis, rank)
            reference = axis.units(problem.reference[site].double(), rank)
            total += reference @ axis.units(motion.apply(value, axis, rank), rank).mT
    return total


def _mean_over(factor: Factor, value: Tensor, axis: Axis, rank: int) -> Tensor:
    """The mean over a group that acts along one axis of a site."""
    each = (motion.apply(value, axis, rank) for motion in factor.image_motions())
    units = torch.stack([axis.units(image, rank) for image in each]).mean(0)
    if factor.permutes:
        units = units.mean(-2, keepdim=True).expand_as(units)
    return value + axis.from_units(units - axis.units(value, rank), value.shape[-rank:])


def _images(problem: Matching, factor: Factor) -> AnyElement:
    return transform(lambda part: part.to(problem.device), factor.images())


def _start_from_means(problem: Matching) -> dict[str, AnyElement]:
    permutations: dict[str, AnyElement] = {}
    for group in problem.symmetry.spec:
        pending = frozenset(problem.symmetry.spec) - frozenset(permutations)
        permutations[group] = _assignment(problem.move(permutations), group, pending)
    return permutations


def _random_starts(problem: Matching, num: int) -> Iterator[dict[str, AnyElement]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(num):
        yield _repeat_for_draws(
            problem, problem.symmetry.sample(device=generator.device, generator=generator)
        )


def _identity(symmetry: SymmetryGroup) -> dict[str, Tensor]:
    return {factor.name: factor.identity("cpu") for factor in symmetry.factors}


def _repeat_for_draws(problem: Matching, element: Elements) -> dict[str, AnyElement]:
    """The same element for every draw."""

    def repeat(part: Tensor) -> Tensor:
        return part.to(problem.device).expand(problem.num_draws, -1)

    return {group: transform(repeat, part) for group, part in element.items()}
