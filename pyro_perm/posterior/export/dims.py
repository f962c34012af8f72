"""Names for the dimensions of a model's sites: its plates, and the units of its layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

from numpy.typing import NDArray

from pyro_perm.posterior.export.assembly import DRAW_DIMS
from pyro_perm.program.sites import Site
from pyro_perm.symmetry import Axis, SymmetryGroup

Dims = dict[str, list[str | None]]
Coords = dict[str, list[str]]
Acting = list[tuple[str, Axis]]


def default_dims(
    sites: Mapping[str, Site], symmetry: SymmetryGroup | None, taken: Collection[str]
) -> tuple[Dims, Coords]:
    """Dimensions of the sites' values, and coordinates along them.

    An axis with one entry for each of a group's units is called ``{group}_unit`` in all sites; a
    second one of the same site, as of a recurrent weight, ``{group}_unit_2``. Another axis that
    groups permute is called ``{site}_{groups}_entry``, and its coordinates tell which unit each
    entry belongs to. The dimension of a plate has the plate's name. Where a name is taken, as by
    the argument ``data`` of a model with a plate ``data``, a number makes it another.

    :param sites: sites of the model.
    :param symmetry: the permutation group of the model, or None.
    :param taken: names of variables, which no dimension may have.
    :returns: site -> dimensions, None where there is no name; dimension -> coordinates.
    """
    dims: Dims = {}
    coords: Coords = {}
    for site, drawn in sites.items():
        plates = plate_dims(drawn.plates, taken)
        names = {dim - drawn.event_dim: plate for dim, plate in plates.items()}
        for dim, acting in _permuted_dims(symmetry, site).items():
            unavailable = {*taken, *names.values()}
            group, axis = acting[0]
            if axis.index is None and axis.outer == axis.inner == 1:
                names[dim] = _free(f"{group}_unit", unavailable)
            else:
                groups = dict.fromkeys(group for group, _ in acting)
                names[dim] = _free("_".join([site, *groups, "entry"]), unavailable)
                coords[names[dim]] = _owners(acting, drawn.value.shape[dim])
        dims[site] = [names.get(dim) for dim in range(-drawn.value.dim(), 0)]
    return dims, coords


def plate_dims(plates: Mapping[int, str], taken: Collection[str]) -> dict[int, str]:
    """Dimension of a batch, counted from the right -> its name, which is the plate's if it can be.

    :param plates: dimension -> name of its plate.
    :param taken: names of variables, which no dimension may have.
    """
    return {dim: _free(plate, {*taken, *DRAW_DIMS}) for dim, plate in plates.items()}


def constant_dims(
    constants: Mapping[str, NDArray[Any]],
    observed: Mapping[str, NDArray[Any]],
    dims: Mapping[str, Sequence[str | None]],
) -> Dims:
    """The leading dimension of constants that have a row for each observation, such as inputs.

    :param constants: name -> array.
    :param observed: site -> observations.
    :param dims: site -> dimensions.
    :returns: name -> the observations' leading dimension, where just one has as many rows.
    """
    rows = [(len(y), dims[site][0]) for site, y in observed.items() if y.ndim and dims[site]]
    named: Dims = {}
    for name, values in constants.items():
        leading = {dim for length, dim in rows if dim and values.shape[:1] == (length,)}
        if len(leading) == 1:
            named[name] = [*leading]
    return named


def _permuted_dims(symmetry: SymmetryGroup | None, site: str) -> dict[int, Acting]:
    """Dimension of a site, counted from the right -> the groups that permute it."""
    dims: dict[int, Acting] = {}
    for group, axis in symmetry.actions_on(site) if symmetry else []:
        dims.setdefault(axis.dim, []).append((group, axis))
    return dims


def _free(name: str, taken: Collection[str]) -> str:
    """The name, or else the name with the first number that makes it another."""
    numbered, number = name, 1
    while numbered in taken:
        number += 1
        numbered = f"{name}_{number}"
    return numbered


def _owners(acting: Acting, length: int) -> list[str]:
    """For each entry along an axis, the units that it belongs to; its number if it has none."""
    owners: list[list[str]] = [[] for _ in range(length)]
    for group, axis in acting:
        parts = product(range(axis.outer), range(axis.size(length)), range(axis.inner))
        entries = range(length) if axis.index is None else axis.index
        for entry, (outer, unit, inner) in zip(entries, parts, strict=True):
            part = f" part {outer}" if axis.outer > 1 else ""
            place = f" entry {inner}" if axis.inner > 1 else ""
            owners[entry].append(f"{group} {unit}{part}{place}")
    return [", ".join(units) or str(entry) for entry, units in enumerate(owners)]
