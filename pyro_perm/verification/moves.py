"""What a group does to latent values: the elements by which it is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.elements import unit_of
from pyro_perm.symmetry.group import Factor, SymmetryGroup

PERMUTE, FLIP, RESCALE = "permute", "flip", "rescale"
_MAX_SCALE = 4.0

SiteAxes = tuple[tuple[str, Axis], ...]


@dataclass(frozen=True)
class Move:
    """One element of one group of units.

    Attributes:
        group: the group.
        action: what it does to its units, ``"permute"``, ``"flip"`` or ``"rescale"``.
        axes: the sites and axes along which something moves.
        along: from a site's value, one of its axes and the number of its dimensions to what the
            element makes of it along this axis.
        exempt: sites whose own prior may change: those that the group rescales.
    """

    group: str
    action: str
    axes: SiteAxes
    along: Callable[[Tensor, Axis, int], Tensor]
    exempt: frozenset[str] = frozenset()

    def apply(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values of the sites that move."""
        moved: dict[str, Tensor] = {}
        for site, axis in self.axes:
            value = moved.get(site, values[site])
            moved[site] = self.along(value, axis, value.dim())
        return moved

    def without_last_axis(self) -> Move:
        """The mis-tied variant: what lies along the last axis stays."""
        return replace(self, axes=self.axes[:-1])


def generators(group: SymmetryGroup) -> Iterator[Move]:
    """A transposition, a cycle and a flip for each group as it has them, and random scales."""
    factors = {factor.name: factor for factor in group.factors}
    for name, permutation in group.generators():
        is_flip = bool((permutation < 0).any())
        if is_flip or permutes(factors[name]):
            yield _signed_permutation(factors[name], permutation, FLIP if is_flip else PERMUTE)
    yield from rescalings(group)


def random_element(group: SymmetryGroup) -> Iterator[Move]:
    """What a uniform element does to the units of each group, scales apart."""
    drawn = group.sample()
    for factor in group.factors:
        if permutes(factor):
            yield _signed_permutation(factor, drawn[factor.name], PERMUTE)


def rescalings(group: SymmetryGroup) -> Iterator[Move]:
    """Random scales, between 1/4 and 4 for every unit, for each group that has them."""
    for factor in group.factors:
        axes = tuple((site, axis) for site, axis in factor.axes if axis.scale)
        if axes:
            log_scales = math.log(_MAX_SCALE) * (2 * torch.rand(factor.size) - 1)
            sites = frozenset(site for site, _ in axes)
            yield Move(factor.name, RESCALE, axes, _rescaling(log_scales), sites)


def apply_all(moves: Iterable[Move], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What several moves make of some values, one after the other."""
    moved = dict(values)
    for move in moves:
        moved.update(move.apply(moved))
    return moved


def permutes(factor: Factor) -> bool:
    """Whether a group permutes its units at all."""
    return all(axis.permute for _, axis in factor.axes)


def _signed_permutation(factor: Factor, permutation: Tensor, action: str) -> Move:
    def along(value: Tensor, axis: Axis, rank: int) -> Tensor:
        element = permutation.to(value.device)
        return axis.permuted(value, element if axis.sign else unit_of(element), rank)

    axes = tuple((site, axis) for site, axis in factor.axes if axis.sign or action != FLIP)
    return Move(factor.name, action, axes, along)


def _rescaling(log_scales: Tensor) -> Callable[[Tensor, Axis, int], Tensor]:
    def along(value: Tensor, axis: Axis, rank: int) -> Tensor:
        length = value.shape[axis.dim]
        log_factors = torch.zeros(length, dtype=value.dtype, device=value.device)
        powers = (axis.scale * log_scales).to(log_factors)
        log_factors[axis.unit_coordinates(length).to(value.device)] = powers.unsqueeze(-1)
        return value * log_factors.exp().view(-1, *(1,) * (-1 - axis.dim))

    return along
