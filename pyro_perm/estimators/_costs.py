"""How many multiplications estimators take for a draw of ``w``, roughly: enough to order them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pyro_perm.density.density import Density
from pyro_perm.estimators._terms import Term
from pyro_perm.symmetry.unit_layout import UnitLayout


def entries(density: Density) -> int:
    """Number of entries of ``w`` that the symmetry permutes."""
    symmetry = density.symmetry
    return sum(math.prod(symmetry.site_shape(site)) for site in symmetry.sites)


def unit_pairs(density: Density, terms: Iterable[Term]) -> int:
    """For the matrices of unit pairs of some groups."""
    symmetry = density.symmetry
    return sum(
        symmetry.groups[group] ** 2 * UnitLayout.of(symmetry, group, tuple(sites)).width
        for group, sites in terms
    )


def all_unit_pairs(density: Density) -> int:
    """For those of every group with all of its sites."""
    return unit_pairs(density, (Term(g, tuple(s)) for g, s in density.symmetry.spec.items()))


def row_by_row(density: Density) -> int:
    """For a permutation of every group, drawn row by row with five products of a vector each."""
    return sum(5 * size**3 for size in density.symmetry.groups.values())
