"""The group that a spec describes on the sites of one model, and its action on their values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_perm.symmetry import elements
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import SiteShape, Spec, described, resolve_axes
from pyro_perm.symmetry.elements import unit_of

Permutations = Mapping[str, Tensor]
Acting = tuple[tuple[str, Axis], ...]


@dataclass(frozen=True)
class Factor:
    """One group of units, and where they lie.

    Attributes:
        name: name of the group.
        size: number of units.
        axes: pairs of a site and an axis of it, whose dimension counts from the right.
    """

    name: str
    size: int
    axes: tuple[tuple[str, Axis], ...]

    @property
    def is_signed(self) -> bool:
        """Whether units flip their signs."""
        return any(axis.sign for _, axis in self.axes)


@dataclass(frozen=True)
class SymmetryGroup:
    """A product of groups of units, each along some axes of some sites of known shapes.

    It never changes, and equals any other of the same value: what is derived from it may be
    remembered, and shared by all models that have the same group. The order of its factors counts,
    since the chain rule starts from it.

    Attributes:
        factors: the groups.
        shapes: pairs of a site that some group acts on and its shape.
    """

    factors: tuple[Factor, ...]
    shapes: tuple[tuple[str, SiteShape], ...]

    @classmethod
    def of(cls, spec: Spec, shapes: Mapping[str, SiteShape]) -> SymmetryGroup:
        """The group of a spec.

        :param spec: group -> site -> axes.
        :param shapes: shape of every site in the spec.
        :raises ValueError: if an axis does not exist, if the axes of a group have different numbers
            of units or disagree on whether these are permuted, or if two axes of a site do not
            commute.
        """
        sizes, axes = resolve_axes(spec, shapes)
        factors = tuple(Factor(name, size, axes[name]) for name, size in sizes.items())
        sites = dict.fromkeys(site for sites in spec.values() for site in sites)
        return cls(factors, tuple((site, shapes[site]) for site in sites))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # What is remembered stays behind: hashes of strings differ from one process to another.
        return type(self), (self.factors, self.shapes)

    def __repr__(self) -> str:
        lines = [f"    {group!r}: {described(sites)}," for group, sites in self.spec.items()]
        return "\n".join(["SymmetryGroup({", *lines, "})"])

    def __bool__(self) -> bool:
        """Whether there is a group at all."""
        return bool(self.factors)

    @cached_property
    def spec(self) -> Mapping[str, Mapping[str, tuple[Axis, ...]]]:
        """Group -> site -> axes, whose dimensions count from the right."""
        spec: dict[str, dict[str, tuple[Axis, ...]]] = {}
        for factor in self.factors:
            sites = spec.setdefault(factor.name, {})
            for site, axis in factor.axes:
                sites[site] = (*sites.get(site, ()), axis)
        return MappingProxyType({name: MappingProxyType(sites) for name, sites in spec.items()})

    @cached_property
    def groups(self) -> Mapping[str, int]:
        """Number of units of each group."""
        return MappingProxyType({factor.name: factor.size for factor in self.factors})

    @cached_property
    def signed_groups(self) -> tuple[str, ...]:
        """Groups that flip the signs of their units."""
        return tuple(factor.name for factor in self.factors if factor.is_signed)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that some group acts on."""
        return tuple(site for site, _ in self.shapes)

    @cached_property
    def log_orders(self) -> Mapping[str, float]:
        """``log n!`` of each group, or ``log n! 2^n`` if it flips signs, in nats."""
        return MappingProxyType(
            {f.name: elements.log_order(f.size, signed=f.is_signed) for f in self.factors}
        )

    @cached_property
    def log_order(self) -> float:
        """``log |G|`` in nats."""
        return sum(self.log_orders.values())

    def site_shape(self, site: str) -> tuple[int, ...]:
        """Shape of a site's value, plates included."""
        return self._shapes[site].shape

    def site_rank(self, site: str) -> int:
        """Number of dimensions of a site's value, plates included."""
        return len(self._shapes[site].shape)

    def site_plates(self, site: str) -> int:
        """Number of the model's plate dimensions in a site's value."""
        shape = self._shapes[site]
        return len(shape.shape) - shape.event_dim

    def coordinates(self, site: str) -> tuple[int, ...]:
        """Shape of a site in unconstrained space, in as many dimensions as its value has."""
        return self._shapes[site].coordinates

    def unconstrained_rank(self, site: str) -> int:
        """Number of dimensions of a site in unconstrained space, plates included."""
        shape = self._shapes[site]
        return len(shape.shape if shape.unconstrained is None else shape.unconstrained)

    def is_simplex(self, site: str) -> bool:
        """Whether the entries of a site's probability vectors are permuted, as a Dirichlet's."""
        return self._shapes[site].is_simplex

    def actions_on(self, site: str) -> Acting:
        """The groups that act on a site, each with an axis; dimensions count from the right."""
        return self._actions.get(site, ())

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Draw uniformly from the group.

        :param sample_shape: shape of the batch of independent elements.
        :returns: group -> permutation, shape ``(*sample_shape, n)``.
        """
        return {
            factor.name: elements.sample(
                sample_shape,
                factor.size,
                signed=factor.is_signed,
                device=device,
                generator=generator,
            )
            for factor in self.factors
        }

    def generators(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs of a group and one of its generators, shape ``(n,)``."""
        for factor in self.factors:
            for permutation in elements.generators(factor.size, signed=factor.is_signed):
                yield factor.name, permutation

    def apply(self, permutations: Permutations, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Act on values, or on anything of the sites' shapes, such as locs and scales.

        Batch dimensions on the left of permutations and values broadcast against each other.
        Groups without a permutation are left alone, and so are sites that no group permutes.

        :param permutations: group -> permutation, shape ``(*batch, n)``. Nothing checks them here.
        :param values: site -> tensor, shape ``(*batch, *site shape)``.
        :returns: site -> tensor, with unit ``i`` taken from unit ``permutation[i]``.
        """
        return {
            site: act(
                self.actions_on(site), self.signed_groups, permutations, value, self.site_rank(site)
            )
            if site in self._shapes
            else value
            for site, value in values.items()
        }

    @staticmethod
    def inverse(permutations: Permutations) -> dict[str, Tensor]:
        """The element that undoes another."""
        return {group: elements.inverse(p) for group, p in permutations.items()}

    @staticmethod
    def compose(first: Permutations, second: Permutations) -> dict[str, Tensor]:
        """The element that acts like ``second``, then ``first``: ``(first second) . w``.

        :raises ValueError: if the two do not permute the same groups.
        """
        if first.keys() != second.keys():
            raise ValueError(f"cannot compose groups {list(first)} with groups {list(second)}")
        return {group: elements.compose(p, second[group]) for group, p in first.items()}

    @cached_property
    def _shapes(self) -> dict[str, SiteShape]:
        return dict(self.shapes)

    @cached_property
    def _actions(self) -> dict[str, Acting]:
        actions: dict[str, list[tuple[str, Axis]]] = {}
        for factor in self.factors:
            for site, axis in factor.axes:
                actions.setdefault(site, []).append((factor.name, axis))
        return {site: tuple(acting) for site, acting in actions.items()}

    @cached_property
    def _hash(self) -> int:
        return hash((self.factors, self.shapes))


class GroupSpec(Protocol):
    """What turns into a group once it meets a model."""

    spec: dict[str, dict[str, tuple[Axis, ...]]]

    def bind_shapes(self, shapes: Mapping[str, SiteShape]) -> SymmetryGroup:
        """The group on sites of these shapes."""


def act(
    acting: Iterable[tuple[str, Axis]],
    signed: Collection[str],
    permutations: Permutations,
    value: Tensor,
    rank: int,
) -> Tensor:
    """Let groups act on one site.

    :param acting: pairs of a group and one of its axes, whose dimension counts from the right.
    :param signed: groups that flip signs.
    :param value: shape ``(*batch, *site shape)``.
    :param rank: number of dimensions of the site's shape.
    """
    for group, axis in acting:
        if group in permutations:
            permutation = permutations[group].to(value.device)
            if group in signed and not axis.sign:
                permutation = unit_of(permutation)
            value = axis.permuted(value, permutation, rank)
    return value
