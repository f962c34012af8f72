"""How far two Gaussian posteriors are apart, but for the order of the units."""

from __future__ import annotations

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.density.base_guides import normals_of
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.modulo.alignment import align
from pyro_perm.posterior.whose_symmetry import largest_symmetry
from pyro_perm.program._pyro_internals import named_owners
from pyro_perm.symmetry import Axis, SymmetryGroup

_SCALE = " (scale)"


@torch.no_grad()
def wasserstein_distance(
    first: AutoGuide,
    second: AutoGuide,
    symmetry: PermutationSymmetry | None = None,
    *,
    num_restarts: int = 10,
) -> float:
    r"""Wasserstein-2 distance between two factorized Gaussians, modulo the group.

    ``min over g of W2(q_1, g . q_2)``, where ``W2^2 = sum of (loc_1 - loc_2)^2 + (scale_1 -
    scale_2)^2`` over all latent sites in unconstrained space. It is symmetric, zero if and only if
    the two are equal up to a permutation, and an upper bound of the distance between their
    symmetrizations. The minimum is that of :func:`align`: exact where groups share no sites,
    otherwise the best that coordinate descent finds.

    Where groups rescale their units, the distance is that between balanced Gaussians: those of
    ``t . q`` for which incoming and outgoing entries of each unit have the same second moments. It
    is then zero if and only if the two are equal up to permutations and scales.

    :param first: an ``AutoNormal``, or another guide that draws each site by itself from a Normal
        which its reader knows, or :class:`AutoSymmetrized` of one, that has been trained.
    :param second: another, for the same model.
    :param symmetry: the group, bound to the model; needed if no guide is symmetrized. By default
        the larger one of the guides, as of those in :func:`compare`.
    :param num_restarts: as in :func:`align`.
    :raises ValueError: if the symmetry is missing, or one of unlike groups of one size must be
        chosen; if the guides have different sites, or Pyro's param store has given one the
        parameters of the other.
    :raises TypeError: if a guide is of another kind.
    """
    one, other = _gaussians(first), _gaussians(second)
    _require_own_parameters(first, second)
    symmetry = symmetry or largest_symmetry({"first": first, "second": second})
    if symmetry is None:
        raise ValueError("neither guide is symmetrized: give the group as symmetry=")
    group = _on_locs_and_scales(symmetry.group)
    if one.keys() != other.keys():
        raise ValueError(f"the guides differ in their sites: {sorted(one)} and {sorted(other)}")
    # Coordinate descent may find different minima in the two directions.
    return min(
        _distance_after_alignment(fixed, moving, group, num_restarts)
        for fixed, moving in ((one, other), (other, one))
    )


def _require_own_parameters(first: AutoGuide, second: AutoGuide) -> None:
    """Refuse two guides of which one has taken over parameters of the other."""
    owners = {id(value): part for _, value, part in named_owners(first)}
    for name, value, part in named_owners(second):
        if owners.get(id(value), part) is not part:
            raise ValueError(
                f"the guides go by one '{name}' of Pyro's param store, as guides of one class do, "
                "so that nothing is between them: train them under "
                "pyro.settings.set(module_local_params=True)"
            )


def _distance_after_alignment(
    fixed: dict[str, Tensor],
    moving: dict[str, Tensor],
    symmetry: PermutationSymmetry,
    num_restarts: int,
) -> float:
    alignment = align(moving, symmetry, fixed, num_restarts=num_restarts)
    moved, fixed = alignment.samples, {**fixed, **alignment.reference}
    squares = [(moved[site].double() - fixed[site].double()).square().sum() for site in fixed]
    return torch.stack(squares).sum().sqrt().item()


def _on_locs_and_scales(symmetry: SymmetryGroup) -> PermutationSymmetry:
    """The same group on locs and scales, of which flips change the former only."""
    spec: dict[str, dict[str, list[Axis]]] = {group: {} for group in symmetry.spec}
    shapes = {}
    for site in symmetry.sites:
        if symmetry.is_simplex(site):
            raise ValueError(
                f"site '{site}' holds probability vectors, whose Gaussian factors are not those of "
                "its entries: leave its groups out with symmetry.subset()"
            )
        shapes[site] = shapes[site + _SCALE] = symmetry.coordinates(site)
        for group, axis in symmetry.actions_on(site):
            spec[group].setdefault(site, []).append(axis)
            spec[group].setdefault(site + _SCALE, []).append(axis.of_scales)
    return PermutationSymmetry(spec, shapes=shapes)


def _gaussians(guide: AutoGuide) -> dict[str, Tensor]:
    """Locs and scales of all latent sites, in unconstrained space."""
    base = guide.base if isinstance(guide, AutoSymmetrized) else guide
    normals = normals_of(base)
    if normals is None:
        raise TypeError(
            "the distance is between guides that draw each site by itself from a Normal, as "
            f"AutoNormal does, plain or symmetrized, but a guide is a {type(base).__name__}"
        )
    if base.prototype_trace is None:
        raise ValueError("a guide has no parameters yet: train it, or call guide(*args)")
    gaussians = {}
    for site, (loc, scale) in normals().items():
        gaussians[site], gaussians[site + _SCALE] = loc, scale
    return gaussians
