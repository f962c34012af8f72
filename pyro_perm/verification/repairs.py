"""What a wrong spec may have meant, found by trying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch.distributions import constraints

from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import unwrapped
from pyro_perm.symmetry.factor import Factor
from pyro_perm.symmetry.group import SymmetryGroup
from pyro_perm.verification.log_density import LogDensity, Point
from pyro_perm.verification.moves import PERMUTE, RESCALE, Move, SiteAxes

_DEGREES = (-1, 1, 0, -2, 2)


def repair(group: SymmetryGroup, density: LogDensity, point: Point, move: Move) -> str | None:
    """The one axis that is wrong or missing, if another one would leave everything alone."""
    if move.action == RESCALE:
        return _repair_of_scales(group, density, point, move)
    if move.action == PERMUTE:
        return _repair_of_permutation(group, density, point, move)
    return None


def _repair_of_permutation(
    group: SymmetryGroup, density: LogDensity, point: Point, move: Move
) -> str | None:
    (factor,) = (factor for factor in group.factors if factor.name == move.group)
    for what, axes in _permuted_variants(factor, density):
        if _leaves_alone(density, point, replace(move, axes=axes)):
            return f"{what} would leave it alone"
    return None


def _permuted_variants(factor: Factor, density: LogDensity) -> Iterator[tuple[str, SiteAxes]]:
    """All axes with one more, or with another one of the same site."""
    left_out = [
        (site, axis)
        for site, axis in _axes_left_out(factor, density)
        if not unwrapped(density.latents[site].support).event_dim
    ]
    for site, axis in left_out:
        what = f"to permute axis {axis.dim} of site '{site}' too"
        yield what, (*factor.axes, (site, axis))
    for k, (site, axis) in enumerate(factor.axes):
        for other in (other for name, other in left_out if name == site):
            what = f"to permute axis {other.dim} of site '{site}' in place of axis {axis.dim}"
            yield what, (*factor.axes[:k], (site, other), *factor.axes[k + 1 :])


def _leaves_alone(density: LogDensity, point: Point, move: Move) -> bool:
    return max(density.changes(point, [move]).values(), default=0.0) <= point.rounding


def _repair_of_scales(
    group: SymmetryGroup, density: LogDensity, point: Point, move: Move
) -> str | None:
    (factor,) = (factor for factor in group.factors if factor.name == move.group)
    for site, axis, axes in _variants(factor, density):
        variant = replace(move, axes=axes, exempt=frozenset(site for site, _ in axes))
        if _leaves_alone(density, point, variant):
            return f"scale={axis.scale} along axis {axis.dim} of site '{site}' would leave it alone"
    return None


def _variants(factor: Factor, density: LogDensity) -> Iterator[tuple[str, Axis, SiteAxes]]:
    """A site, one of its axes with another degree, and all axes that are then rescaled."""
    for k in reversed(range(len(factor.axes))):
        site, axis = factor.axes[k]
        for degree in _DEGREES:
            other = replace(axis, scale=degree)
            axes = (*factor.axes[:k], (site, other), *factor.axes[k + 1 :])
            if degree != axis.scale and any(axis.scale for _, axis in axes):
                yield site, other, tuple((s, axis) for s, axis in axes if axis.scale)
    scaled = tuple((site, axis) for site, axis in factor.axes if axis.scale)
    for site, axis in _axes_left_out(factor, density):
        if not isinstance(unwrapped(density.latents[site].support), type(constraints.real)):
            continue
        for degree in (1, -1):
            other = replace(axis, scale=degree)
            yield site, other, (*scaled, (site, other))


def _axes_left_out(factor: Factor, density: LogDensity) -> Iterator[tuple[str, Axis]]:
    """The axes along which as many units may lie, but none are said to."""
    for site, latent in density.latents.items():
        taken = {axis.dim for name, axis in factor.axes if name == site}
        for dim in range(-len(latent.shape), 0):
            if latent.shape[dim] == factor.size and dim not in taken:
                yield site, Axis(dim)
