"""Fitting a permutation spec to the shapes of a model's sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to, constraints

from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.spec import Spec
from pyro_perm.symmetry.suggestions import suggestion

SiteAxes = tuple[tuple[str, Axis], ...]


@dataclass(frozen=True)
class SiteShape:
    """Shape of a latent site's value.

    Attributes:
        shape: the whole shape, plates on the left, event on the right.
        event_dim: how many of its dimensions are the event's.
        is_simplex: whether its events are probability vectors whose entries are permuted, and which
            have fewer coordinates in unconstrained space.
        unconstrained: its shape in unconstrained space, where that is another.
        follows: whether the site only goes along with others, and is no variable of its own: a
            running moment of a layer, or a second name of a parameter.
    """

    shape: tuple[int, ...]
    event_dim: int
    is_simplex: bool = False
    unconstrained: tuple[int, ...] | None = None
    follows: bool = False

    @property
    def coordinates(self) -> tuple[int, ...]:
        """Shape in unconstrained space, in as many dimensions as the value has.

        The additional ones are on the right, so that a group that permutes whole events along a
        plate permutes the same dimension of both.
        """
        shape = self.shape if self.unconstrained is None else self.unconstrained
        return shape + (1,) * (len(self.shape) - len(shape))


def resolve_axes(
    spec: Spec, shapes: Mapping[str, SiteShape]
) -> tuple[dict[str, int], dict[str, SiteAxes]]:
    """The groups' sizes, and where their units lie.

    :param spec: group -> site -> axes.
    :param shapes: shape of every site in the spec.
    :returns: group -> number of units, and group -> pairs of a site and an axis, whose dimension
        counts from the right.
    :raises ValueError: if an axis does not exist, or if the axes of a group have different numbers
        of units.
    """
    sizes: dict[str, int] = {}
    axes: dict[str, SiteAxes] = {}
    for group, sites in spec.items():
        for site, each in sites.items():
            for axis in each:
                resolved, size = _resolve(group, site, axis, shapes[site])
                if sizes.setdefault(group, size) != size:
                    first_site, first_axes = next(iter(sites.items()))
                    raise ValueError(
                        f"group '{group}' has {sizes[group]} units along axis "
                        f"{first_axes[0]} of site '{first_site}', but {size} along axis "
                        f"{axis} of site '{site}': all axes of a group need the same number"
                    )
                axes[group] = (*axes.get(group, ()), (site, resolved))
    return sizes, axes


def site_shapes(spec: Spec, trace: Any) -> dict[str, SiteShape]:
    """The shapes of a spec's sites in a trace of the model.

    :raises ValueError: if a site is not latent, or lies in a subsampled plate.
    """
    nodes = trace.nodes
    latent = [n for n in trace.stochastic_nodes if n in nodes and not site_is_subsample(nodes[n])]
    for group, sites in spec.items():
        for site in sites:
            if site not in latent:
                raise ValueError(_not_latent(group, site, trace, latent))
    shapes = {}
    for site in dict.fromkeys(site for sites in spec.values() for site in sites):
        node = trace.nodes[site]
        for frame in node["cond_indep_stack"]:
            if frame.vectorized and frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"site '{site}' lies in the subsampled plate '{frame.name}': a group can "
                    "permute only sites that every call draws in full; remove the site from "
                    "the symmetry, or the subsampling from the plate"
                )
        shape = SiteShape(tuple(node["value"].shape), node["fn"].event_dim)
        dims = [
            _resolve(group, site, axis, shape)[0].dim
            for group, sites in spec.items()
            for axis in sites.get(site, ())
        ]
        shapes[site] = _with_coordinates(shape, node["fn"].support, dims)
    return shapes


def unwrapped(support: constraints.Constraint) -> constraints.Constraint:
    """The constraint on each event, or on each entry where these are independent."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def dims_of_events(support: constraints.Constraint) -> int:
    """How many dimensions on the right the transform to unconstrained space mixes."""
    try:
        return int(biject_to(unwrapped(support)).codomain.event_dim)
    except NotImplementedError:  # discrete values
        return 0


def _with_coordinates(
    shape: SiteShape, support: constraints.Constraint, permuted: Sequence[int]
) -> SiteShape:
    """The shape with what its support says.

    :param permuted: the dimensions that groups permute, counted from the right.
    """
    mixed = dims_of_events(support)
    if not mixed:
        return shape
    event = biject_to(unwrapped(support)).inverse_shape(torch.Size(shape.shape[-mixed:]))
    unconstrained = (*shape.shape[:-mixed], *event)
    within = any(dim >= -mixed for dim in permuted)
    return replace(
        shape,
        is_simplex=within and unwrapped(support) is constraints.simplex,
        unconstrained=None if unconstrained == shape.shape else unconstrained,
    )


def _resolve(group: str, site: str, axis: Axis, shape: SiteShape) -> tuple[Axis, int]:
    try:
        resolved = axis.resolve(shape.shape, shape.event_dim)
        return resolved, resolved.size(shape.shape[resolved.dim])
    except ValueError as error:
        raise ValueError(f"group '{group}', site '{site}': {error}") from None


def _not_latent(group: str, site: str, trace: Any, latent: list[str]) -> str:
    what = "is not a site of"
    if site in trace.nodes:
        what = "is a plate of" if site_is_subsample(trace.nodes[site]) else "is observed by"
    return (
        f"group '{group}' names site '{site}', which {what} the model{suggestion(site, latent)}; "
        f"the model's latent sites are {latent}"
    )
