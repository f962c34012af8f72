"""Which groups may also rescale their units, and by which power along each axis.

Multiplying a rectifier's incoming weights and bias by ``c > 0`` and its outgoing weights by ``1/c``
leaves the network's function as it is, but not the prior: groups rescale where the likelihood does
not change. Every unit has a ``c`` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.dataflow import Sites, Unknown
from pyro_perm.discovery.gradings.independence import Shapes, dependent_groups
from pyro_perm.discovery.gradings.rules import SCALES
from pyro_perm.discovery.gradings.single_units import single_unit_groups, sites_of_single_units
from pyro_perm.discovery.gradings.tied_units import units_of_likelihood
from pyro_perm.discovery.gradings.unit_scaling import UnitScaling
from pyro_perm.discovery.recording.log_joint import LogJoint
from pyro_perm.symmetry.axis import Axis

Spec = dict[str, dict[str, tuple[Axis, ...]]]

_DEPENDENT = "rescaling all of its units alike does nothing that other groups' scales do not"


def with_scales(
    joint: LogJoint, spec: Mapping[str, Sites], unscalable: Mapping[str, str]
) -> tuple[Spec, dict[str, str]]:
    """The groups, with degrees on the axes that are rescaled, and groups that only rescale.

    The latter are of units that the likelihood ties together, but that cannot be permuted: their
    priors are unequal, data tell them apart, or a layer has only one.

    :param spec: group -> site -> axes, as found.
    :param unscalable: sites that cannot be rescaled because of their own prior, with the reasons.
    :returns: the groups, and for those without scales the reason.
    """
    scaling = UnitScaling(joint, unscalable)
    scaled: Spec = {}
    reasons: dict[str, str] = {}
    for group, sites in spec.items():
        degrees, why = scaling.degrees(sites)
        scaled[group] = _with_degrees(sites, degrees)
        if why is not None:
            reasons[f"scale of {group}"] = str(why)
    for sites in _scale_only(joint, spec, scaling):
        scaled[f"P{len(scaled)}"] = sites
    shapes = {name: latent.node.shape for name, latent in joint.latents.items()}
    single = {f"P{k}": s for k, s in enumerate(_single_units(scaling, shapes), len(scaled))}
    rescaling = {g: sites for g, sites in (scaled | single).items() if _rescales(sites)}
    dependent = dependent_groups(rescaling, shapes, lambda axis: axis.scale, SCALES.field)
    for group in scaled.keys() & dependent:
        reasons[f"scale of {group}"] = _DEPENDENT
        scaled[group] = _with_degrees(scaled[group], {})
    scaled |= {group: sites for group, sites in single.items() if group not in dependent}
    return {g: sites for g, sites in scaled.items() if g in spec or _rescales(sites)}, reasons


def _scale_only(
    joint: LogJoint, spec: Mapping[str, Sites], scaling: UnitScaling
) -> Iterator[dict[str, tuple[Axis, ...]]]:
    """Groups of units that no group of a spec permutes."""
    permuted = _permuted_coordinates(joint, spec)
    for units in units_of_likelihood(joint):
        alike: dict[tuple[int, ...], list[Tensor]] = {}
        for members in units.classes:
            fixed = members[~_are_permuted(units.along(members), len(members), permuted)]
            sites = units.along(fixed) if len(fixed) else {}
            degrees, _ = scaling.degrees(sites)
            if degrees:
                each = tuple(degrees.get(unknown, 0) for unknown in _flat(sites))
                alike.setdefault(each, []).append(fixed)
        for each, classes in alike.items():
            sites = units.along(torch.cat(classes).sort().values)
            degrees = dict(zip(_flat(sites), each, strict=True))
            yield {
                site: tuple(replace(axis, permute=False) for axis in axes if axis.scale)
                for site, axes in _with_degrees(sites, degrees).items()
                if any(axis.scale for axis in axes)
            }


def _single_units(scaling: UnitScaling, shapes: Shapes) -> Iterator[dict[str, tuple[Axis, ...]]]:
    units = scaling.independent_degrees(sites_of_single_units(shapes))
    by_site = ({site: degree for (site, _), degree in degrees.items()} for degrees in units)
    return single_unit_groups(
        by_site, shapes, lambda dim, degree: Axis(dim, scale=degree, permute=False)
    )


def _permuted_coordinates(
    joint: LogJoint, spec: Mapping[str, Sites]
) -> dict[tuple[str, int], Tensor]:
    """Which coordinates along each dimension of each site some group permutes."""
    permuted: dict[tuple[str, int], Tensor] = {}
    for site, axis in (unknown for sites in spec.values() for unknown in _flat(sites)):
        length = joint.latents[site].node.shape[axis.dim]
        along = permuted.setdefault(
            (site, axis.dim), torch.zeros(length, dtype=torch.bool, device="cpu")
        )
        along[axis.unit_coordinates(length).flatten()] = True
    return permuted


def _are_permuted(
    sites: Sites, num_units: int, permuted: Mapping[tuple[str, int], Tensor]
) -> Tensor:
    """Which units have an entry that is permuted, shape ``(num_units,)``."""
    found = torch.zeros(num_units, dtype=torch.bool, device="cpu")
    for site, axis in _flat(sites):
        along = permuted.get((site, axis.dim))
        if along is not None:
            found |= along[axis.unit_coordinates(len(along))].any(1)
    return found


def _with_degrees(sites: Sites, degrees: Mapping[Unknown, int]) -> dict[str, tuple[Axis, ...]]:
    return {
        site: tuple(replace(axis, scale=degrees.get((site, axis), 0)) for axis in axes)
        for site, axes in sites.items()
    }


def _rescales(sites: Sites) -> bool:
    return any(axis.scale for _, axis in _flat(sites))


def _flat(sites: Sites) -> list[Unknown]:
    return [(site, axis) for site, axes in sites.items() for axis in axes]
