"""What a group does to latent values: the elements by which it is checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_perm.symmetry.actions.scale import Scale
from pyro_perm.symmetry.actions.sign import Sign
from pyro_perm.symmetry.actions.unit_action import UnitAction
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.factor import Factor, Motion
from pyro_perm.symmetry.group import SymmetryGroup

PERMUTE, FLIP, RESCALE = "permute", Sign.verb, Scale.verb

SiteAxes = tuple[tuple[str, Axis], ...]


@dataclass(frozen=True)
class Move:
    """One element of one group of units.

    Attributes:
        group: the group.
        action: what it does to its units: ``"permute"``, ``"flip"``, ``"rescale"``, or the verb of
            another action.
        axes: the sites and axes along which something moves.
        motion: what the element does along them.
        exempt: sites whose own prior may change: those that a group that is not compact acts on.
    """

    group: str
    action: str
    axes: SiteAxes
    motion: Motion
    exempt: frozenset[str] = frozenset()

    def apply(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values of the sites that move."""
        moved: dict[str, Tensor] = {}
        for site, axis in self.axes:
            value = moved.get(site, values[site])
            moved[site] = self.motion.apply(value, axis, value.dim())
        return moved

    def without_last_axis(self) -> Move:
        """The mis-tied variant: what lies along the last axis stays."""
        return replace(self, axes=self.axes[:-1])


def generators(group: SymmetryGroup) -> Iterator[Move]:
    """Permutations and compact actions by their generators, and random scales."""
    for factor in group.factors:
        for action, element in factor.generators():
            if action is None:
                yield Move(factor.name, PERMUTE, factor.axes, factor.motion(element))
            elif action.is_compact:
                axes = _axes_of(action, factor)
                yield Move(factor.name, action.verb, axes, factor.motion(element))
    yield from rescalings(group)


def random_element(group: SymmetryGroup) -> Iterator[Move]:
    """What a uniform element does to the units of each group, scales apart."""
    for factor in group.factors:
        motion = factor.motion(factor.sample(device="cpu"))
        parts = tuple((action, part) for action, part in motion.parts if action.is_compact)
        if parts or factor.permutes:
            yield Move(factor.name, PERMUTE, factor.axes, motion._replace(parts=parts))


def rescalings(group: SymmetryGroup) -> Iterator[Move]:
    """What random elements of actions that are not compact do to the units of each group."""
    for factor in group.factors:
        for action in factor.actions:
            if not action.is_compact:
                axes = _axes_of(action, factor)
                motion = Motion(None, ((action, action.sample((factor.size,), device="cpu")),))
                sites = frozenset(site for site, _ in axes)
                yield Move(factor.name, action.verb, axes, motion, sites)


def apply_all(moves: Iterable[Move], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What several moves make of some values, one after the other."""
    acting: dict[str, list[tuple[Motion, Axis]]] = {}
    for move in moves:
        for site, axis in move.axes:
            acting.setdefault(site, []).append((move.motion, axis))
    return {**values, **{site: _move(values[site], each) for site, each in acting.items()}}


def _move(value: Tensor, acting: list[tuple[Motion, Axis]]) -> Tensor:
    """A site's value after several motions; where all permute, one selection a dimension."""
    if any(motion.parts for motion, _ in acting):
        for motion, axis in acting:
            value = motion.apply(value, axis, value.dim())
        return value
    by_dim: dict[int, Tensor] = {}
    for motion, axis in acting:
        sources = by_dim.get(axis.dim, torch.arange(value.shape[axis.dim], device=value.device))
        by_dim[axis.dim] = motion.apply(sources, replace(axis, dim=-1), rank=1)
    for dim, sources in by_dim.items():
        value = value.index_select(dim, sources)
    return value


def _axes_of(action: UnitAction, factor: Factor) -> SiteAxes:
    return tuple((site, axis) for site, axis in factor.axes if action.degree(axis))
