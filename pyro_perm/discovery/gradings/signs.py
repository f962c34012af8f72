"""Which of the found groups may also flip the signs of their units, and along which axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch.distributions import constraints

from pyro_perm.discovery.gradings.dataflow import GradedJoint, Sites, Unknown
from pyro_perm.discovery.gradings.independence import Shapes, dependent_groups
from pyro_perm.discovery.gradings.linear_equations import sparse_basis
from pyro_perm.discovery.gradings.rules import SIGNS
from pyro_perm.discovery.gradings.single_units import single_unit_groups, sites_of_single_units
from pyro_perm.discovery.permutations.expressions import Reason
from pyro_perm.discovery.recording.log_joint import LogJoint
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import unwrapped


def with_signs(
    joint: LogJoint, spec: Mapping[str, Sites]
) -> tuple[dict[str, dict[str, tuple[Axis, ...]]], dict[str, str]]:
    """The groups, with signs on the axes that flip, and those of layers of a single unit.

    A group has at most one flip of a unit: of several, the one along most axes is taken.

    :param spec: group -> site -> axes, as found.
    :returns: the groups, and for those without signs the reason.
    """
    graded = GradedJoint(joint, SIGNS)
    signed, reasons = {}, {}
    for group, sites in spec.items():
        flipping, why = _flipping_axes(graded, sites)
        if not flipping:
            reasons[f"sign of {group}"] = str(why)
        signed[group] = {
            site: tuple(replace(axis, sign=(site, axis) in flipping) for axis in axes)
            for site, axes in sites.items()
        }
    shapes = {name: latent.node.shape for name, latent in joint.latents.items()}
    single = {f"P{k}": s for k, s in enumerate(_single_units(graded, shapes), len(signed))}
    dependent = dependent_groups(signed | single, shapes, lambda axis: int(axis.sign), SIGNS.field)
    signed |= {group: sites for group, sites in single.items() if group not in dependent}
    return signed, reasons


def _single_units(graded: GradedJoint, shapes: Shapes) -> Iterator[dict[str, tuple[Axis, ...]]]:
    unknowns = _unknowns(graded.joint, sites_of_single_units(shapes))
    equations = graded.demands(unknowns, graded.joint.factors).equations
    units = (
        {site: 1 for (site, _), flips in zip(unknowns, solution, strict=True) if flips}
        for solution in sparse_basis(equations.solutions(), SIGNS.field)
    )
    return single_unit_groups(units, shapes, lambda dim, _: Axis(dim, sign=True, permute=False))


def _unknowns(joint: LogJoint, sites: Sites) -> list[Unknown]:
    """The axes of sites on the whole real line."""
    return [
        (site, axis)
        for site, axes in sites.items()
        for axis in axes
        if isinstance(unwrapped(joint.latents[site].support), type(constraints.real))
    ]


def _flipping_axes(graded: GradedJoint, sites: Sites) -> tuple[set[Unknown], Reason | None]:
    unknowns = _unknowns(graded.joint, sites)
    if not unknowns:
        return set(), Reason("no site of the group has the whole real line as its support")
    equations = graded.demands(unknowns, graded.joint.factors).equations
    best = max(equations.solutions(), key=sum, default=())
    flipping = {unknown for unknown, flips in zip(unknowns, best, strict=False) if flips}
    return flipping, equations.cause
