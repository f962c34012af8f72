"""From the algebra's axis expressions to the structured axes of a permutation symmetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_perm.discovery.permutations.expressions import (
    Atom,
    AxisExpr,
    Product,
    Rearrangement,
    Sum,
    atoms_of,
    resolve,
    size_of,
)
from pyro_perm.symmetry.axis import Axis

AxesOfSites = Mapping[str, Sequence[AxisExpr]]


def sites_of_free_atoms(axes: AxesOfSites) -> dict[Atom, AxesOfSites]:
    """The atoms that are not frozen, in order, and the sites along whose axes each of them lies."""
    sites: dict[Atom, dict[str, Sequence[AxisExpr]]] = {}
    for name, each in axes.items():
        for axis in each:
            for atom in atoms_of(resolve(axis)):
                if atom.frozen is None:
                    sites.setdefault(atom, {})[name] = each
    return dict(sites)


def sites_along(axes: AxesOfSites, atom: Atom, members: Tensor) -> dict[str, tuple[Axis, ...]]:
    """Every site with some of an atom's units, and the axes that they lie along.

    :param axes: those of the atom's sites; of others nothing is said.
    :param members: the units, shape ``(n,)``.
    """
    along = {
        name: tuple(
            structured
            for dim, axis in enumerate(each)
            for structured in axes_along(axis, atom, members, dim - len(each))
        )
        for name, each in axes.items()
    }
    return {name: each for name, each in along.items() if each}


def axes_along(axis: AxisExpr, atom: Atom, members: Tensor, dim: int) -> list[Axis]:
    """How some units of an atom lie along a dimension.

    :param members: the units, shape ``(n,)``.
    :param dim: the dimension.
    """
    length = size_of(axis)
    is_all = len(members) == atom.size
    return [
        _axis(table if is_all else table[:, members], dim, length)
        for table in _tables(resolve(axis), atom)
    ]


def _tables(axis: AxisExpr, atom: Atom) -> list[Tensor]:
    """The coordinates of an atom's units along an axis.

    Equal segments of a sum share one table. An atom that occurs in unequal segments, or twice in a
    product, has several.

    :returns: tables of shape ``(outer, size, inner)``.
    """
    if isinstance(axis, Atom):
        return [torch.arange(axis.size, device="cpu").view(1, -1, 1)] if axis is atom else []
    if isinstance(axis, Product):
        return _product_tables(axis, atom)
    if isinstance(axis, Rearrangement):
        positions = torch.tensor(axis.places, device="cpu").argsort()
        return [positions[table] for table in _tables(axis.axis, atom)]
    assert isinstance(axis, Sum)
    offset, offsets = 0, dict[AxisExpr, list[int]]()
    for segment in axis.segments:
        offsets.setdefault(segment, []).append(offset)
        offset += size_of(segment)
    return [
        torch.cat([table + start for start in starts])
        for segment, starts in offsets.items()
        for table in _tables(segment, atom)
    ]


def _product_tables(axis: Product, atom: Atom) -> list[Tensor]:
    tables = []
    left, right = 1, size_of(axis)
    for factor in axis.factors:
        size = size_of(factor)
        right //= size
        for table in _tables(factor, atom):
            outer = torch.arange(left, device="cpu").view(-1, 1, 1, 1, 1) * size
            coordinates = (outer + table[..., None]) * right + torch.arange(right, device="cpu")
            tables.append(coordinates.flatten(-2).flatten(0, 1))
        left *= size
    return tables


def _axis(table: Tensor, dim: int, length: int) -> Axis:
    outer, _, inner = table.shape
    coordinates = table.flatten().tolist()
    start, stop = coordinates[0], coordinates[0] + len(coordinates)
    if coordinates != list(range(start, stop)):
        return Axis(dim, outer, inner, tuple(coordinates))
    return Axis(dim, outer, inner, None if stop - start == length else range(start, stop))
