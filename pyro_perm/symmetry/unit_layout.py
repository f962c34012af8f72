"""Where the entries of a group's units lie in the tensors of its sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from pyro_perm.symmetry.actions.orbits import Orbits, Part
from pyro_perm.symmetry.actions.permute import SingleImages
from pyro_perm.symmetry.actions.unit_action import UnitAction
from pyro_perm.symmetry.axis import Axis, broadcast_shapes
from pyro_perm.symmetry.group import SymmetryGroup


@dataclass(frozen=True)
class UnitLayout:
    """Gathers everything that belongs to each unit of a group, and puts gradients back.

    Attributes:
        size: number of units.
        parts: one for each axis of the group.
        actions: what acts on each unit by itself.
    """

    size: int
    parts: tuple[Part, ...]
    actions: tuple[UnitAction, ...]

    @classmethod
    @lru_cache
    def of(cls, symmetry: SymmetryGroup, group: str, sites: tuple[str, ...]) -> UnitLayout:
        """The layout of a group's units in some of its sites."""
        parts = tuple(
            _part(position, axis, symmetry.coordinates(site))
            for position, site in enumerate(sites)
            for acting, axis in symmetry.actions_on(site)
            if acting == group
        )
        factor = symmetry.factor(group)
        return cls(factor.size, parts, factor.actions)

    @cached_property
    def orbits(self) -> Orbits:
        """How the actions move the entries of a unit.

        :raises ValueError: if densities cannot be summed over one of them.
        """
        orbits: Orbits = SingleImages()
        for action in reversed(self.actions):
            orbits = action.orbits(self.parts, orbits)
        return orbits

    @property
    def width(self) -> int:
        """Number of entries of a unit."""
        return sum(part.width for part in self.parts)

    def views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to each unit, part by part.

        :param tensors: one a site, shape ``(*batch, *site shape)``.
        :returns: one a part, shape ``(*batch, n, width)``, of the tensors' memory where possible.
        """
        return [part.axis.units(tensors[part.position], len(part.shape)) for part in self.parts]

    def units(self, tensors: Sequence[Tensor]) -> Tensor:
        """Everything that belongs to each unit.

        :param tensors: one a site, shape ``(*batch, *site shape)``.
        :returns: shape ``(*batch, n, width)``.
        """
        return joined(self.views(tensors))

    def sites_from(
        self, units: Sequence[Tensor], clusters: Sequence[Tensor | None] = (None,)
    ) -> list[Tensor]:
        """The transpose of :meth:`units`: gradients of the sites from those of the units.

        :param units: shape ``(*batch, n, width)``, or ``(*batch, *cluster, width)`` for each
            cluster.
        :param clusters: the units that the gradients belong to, each in one cluster at most; None
            stands for all of them.
        :returns: one a site, shape ``(*batch, *site shape)``, contiguous where units come first.
        """
        sites: dict[int, Tensor] = {}
        start = 0
        for position, axis, shape, width in self.parts:
            part = units[0][..., start : start + width]
            if clusters[0] is not None:
                part = part.new_zeros(*part.shape[:-3], self.size, width)
                for each, cluster in zip(units, clusters, strict=True):
                    part[..., cluster, :] = each[..., start : start + width]
            site = axis.from_units(part, shape)
            sites[position] = sites[position] + site if position in sites else site
            start += width
        return [sites[position] for position in range(len(sites))]


def joined(views: Sequence[Tensor], chosen: Tensor | None = None) -> Tensor:
    """The parts side by side.

    :param views: shapes ``(*batch, n, width)``.
    :param chosen: units to take, by default all of them.
    :returns: shape ``(*batch, n, total width)``, or ``(*batch, *chosen, total width)``.
    """
    if chosen is not None:
        flat = chosen.flatten()
        views = [view.index_select(-2, flat).unflatten(-2, chosen.shape) for view in views]
    if len(views) == 1:
        return views[0]
    batch = broadcast_shapes([view.shape[:-1] for view in views])
    return torch.cat([_expand(view, batch) for view in views], -1)


def _part(position: int, axis: Axis, shape: tuple[int, ...]) -> Part:
    width = math.prod(shape) // shape[axis.dim] * axis.outer * axis.inner
    return Part(position, axis, shape, width)


def _expand(tensor: Tensor, batch: torch.Size) -> Tensor:
    return tensor if tensor.shape[:-1] == batch else tensor.expand(*batch, tensor.shape[-1])
