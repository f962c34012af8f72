"""The group that a spec describes on the sites of one model, and its action on their values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from types import MappingProxyType
from typing import Any, Protocol, SupportsIndex

import torch
from torch import Tensor

from pyro_perm.symmetry import elements
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import SiteShape, resolve_axes
from pyro_perm.symmetry.elements import AnyElement, Elements
from pyro_perm.symmetry.factor import Factor, Motion, commute
from pyro_perm.symmetry.spec import Spec, describe

Acting = tuple[tuple[str, Axis], ...]


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
        group = cls(factors, tuple((site, shapes[site]) for site in sites))
        for site in group.sites:
            group._require_commuting(site)
        return group

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # What is remembered stays behind: hashes of strings differ from one process to another.
        return type(self), (self.factors, self.shapes)

    def __repr__(self) -> str:
        lines = [f"    {group!r}: {describe(sites)}," for group, sites in self.spec.items()]
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
    def acting_groups(self) -> tuple[str, ...]:
        """Groups that act on each of their units by itself, be it that they also permute them."""
        return tuple(factor.name for factor in self.factors if factor.actions)

    @cached_property
    def open_groups(self) -> tuple[str, ...]:
        """Groups that rescale their units, over which no density can be averaged."""
        return tuple(factor.name for factor in self.factors if not factor.is_compact)

    @cached_property
    def log_compact_order(self) -> float:
        """``log |G|`` without what is not compact, in nats."""
        return sum(factor.log_compact_order for factor in self.factors)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that some group acts on."""
        return tuple(site for site, _ in self.shapes)

    @cached_property
    def num_plates(self) -> int:
        """The largest number of the model's plate dimensions in any site's value."""
        return max(map(self.site_plates, self.sites))

    @cached_property
    def log_orders(self) -> Mapping[str, float]:
        """``log n! |H|^n`` of each group, in nats; infinite where the group is not compact."""
        return MappingProxyType({factor.name: factor.log_order for factor in self.factors})

    @cached_property
    def log_order(self) -> float:
        """``log |G|`` in nats."""
        return sum(self.log_orders.values())

    @cached_property
    def compact_part(self) -> SymmetryGroup:
        """The group without scales."""
        if not self.open_groups:
            return self
        axes = {f.name: tuple((s, replace(a, scale=0)) for s, a in f.axes) for f in self.factors}
        factors = (Factor(f.name, f.size, axes[f.name]) for f in self.factors)
        return SymmetryGroup(tuple(f for f in factors if f.permutes or f.actions), self.shapes)

    def factor(self, group: str) -> Factor:
        """The group with this name."""
        return self._factors[group]

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

    def follows(self, site: str) -> bool:
        """Whether a site only goes along with others, and is no variable of its own."""
        return self._shapes[site].follows

    def without(self, sites: Collection[str]) -> SymmetryGroup:
        """The group's action on all sites but some; a group that acts on these alone is gone."""
        axes = (tuple(each for each in f.axes if each[0] not in sites) for f in self.factors)
        factors = (replace(f, axes=a) for f, a in zip(self.factors, axes, strict=True) if a)
        return SymmetryGroup(
            tuple(factors), tuple(each for each in self.shapes if each[0] not in sites)
        )

    def actions_on(self, site: str) -> Acting:
        """The groups that act on a site, each with an axis; dimensions count from the right."""
        return self._actions.get(site, ())

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, AnyElement]:
        """Draw from the group, uniformly where it is compact.

        :param sample_shape: shape of the batch of independent elements.
        :returns: group -> permutation or :class:`Element`, shape ``(*sample_shape, n)``.
        :raises TypeError: if the shape is no sequence of numbers, or the generator none of torch's.
        """
        _require_options_of_draws(sample_shape, generator)
        return {
            factor.name: factor.sample(sample_shape, device=device, generator=generator)
            for factor in self.factors
        }

    def generators(self) -> Iterator[tuple[str, AnyElement]]:
        """Pairs of a group and one of its generators, shape ``(n,)``."""
        for factor in self.factors:
            for _, element in factor.generators():
                yield factor.name, element

    def apply(self, element: Elements, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Act on values, or on anything of the sites' shapes, such as locs and scales.

        Batch dimensions on the left of elements and values broadcast against each other. Groups
        that are not named are left alone, and so are sites that no group acts on.

        :param element: group -> permutation or :class:`Element`, shape ``(*batch, n)``. Nothing
            checks them here.
        :param values: site -> tensor, shape ``(*batch, *site shape)``.
        :returns: site -> tensor, with unit ``i`` taken from unit ``permutation[i]``.
        """
        motions = {group: self._factors[group].motion(part) for group, part in element.items()}
        return {
            site: move(self.actions_on(site), motions, value, self.site_rank(site))
            if site in self._shapes
            else value
            for site, value in values.items()
        }

    @staticmethod
    def inverse(element: Elements) -> dict[str, AnyElement]:
        """The element that undoes another."""
        return {group: elements.inverse(part) for group, part in element.items()}

    @staticmethod
    def compose(first: Elements, second: Elements) -> dict[str, AnyElement]:
        """The element that acts like ``second``, then ``first``: ``(first second) . w``.

        :raises ValueError: if the two do not act on the same groups.
        """
        if first.keys() != second.keys():
            raise ValueError(f"cannot compose groups {list(first)} with groups {list(second)}")
        return {group: elements.compose(part, second[group]) for group, part in first.items()}

    def _require_commuting(self, site: str) -> None:
        shape = self.site_shape(site)
        for (group, axis), (other_group, other) in combinations(self.actions_on(site), 2):
            factors = self.factor(group), self.factor(other_group)
            if not commute(factors[0], axis, factors[1], other, shape[axis.dim]):
                raise ValueError(
                    f"site '{site}': group '{group}' along axis {axis} and group '{other_group}' "
                    f"along axis {other} permute the same entries and do not commute; give each "
                    "its own axis"
                )

    @cached_property
    def _factors(self) -> dict[str, Factor]:
        return {factor.name: factor for factor in self.factors}

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


def move(
    acting: Iterable[tuple[str, Axis]], motions: Mapping[str, Motion], value: Tensor, rank: int
) -> Tensor:
    """Let elements of groups act on one site.

    :param acting: pairs of a group and one of its axes, whose dimension counts from the right.
    :param motions: what the elements of some groups do.
    :param value: shape ``(*batch, *site shape)``.
    :param rank: number of dimensions of the site's shape.
    """
    for group, axis in acting:
        if group in motions:
            value = motions[group].apply(value, axis, rank)
    return value


def _require_options_of_draws(sample_shape: Any, generator: Any) -> None:
    is_shape = isinstance(sample_shape, Sequence) and not isinstance(sample_shape, str)
    if not is_shape or not all(isinstance(size, SupportsIndex) for size in sample_shape):
        raise TypeError(
            "sample_shape is the shape of a batch of elements, such as (5,) for five of them or () "
            f"for one, but is {sample_shape!r}"
        )
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            "generator must be one of torch's, such as torch.Generator().manual_seed(0), or None, "
            f"but is {generator!r}"
        )


def require_sizes(
    site: str, acting: Iterable[tuple[str, Axis]], sizes: Mapping[str, int], shape: tuple[int, ...]
) -> None:
    """Refuse elements of another number of units than there are along a site's axes."""
    for group, axis in acting:
        if group in sizes and axis.size(shape[axis.dim]) != sizes[group]:
            raise ValueError(
                f"group '{group}', site '{site}': axis {axis} has {axis.size(shape[axis.dim])} "
                f"units, but the permutation has {sizes[group]}"
            )
