r"""Coupled groups, one at a time.

Coupled layers share matrices, so the sum over all groups is a quadratic assignment problem. In any
order of the groups the chain rule and data processing give

``I(g; w) = sum_l I(g_l; w | g_earlier) >= sum_l I(g_l; w_l | g_earlier)``,

where ``w_l`` are the sites of group ``l`` whose other groups come earlier: every term is one
permanent. In the other direction ``I(g; w) <= sum_l I(g_l; w | all others)``, with all sites of
each group.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.separable import separable_sites
from pyro_perm.symmetry.unit_layout import UnitLayout


class Term(NamedTuple):
    """One group, and the sites that its permanent accounts for."""

    group: str
    sites: tuple[str, ...]


@lru_cache
def lower_terms(symmetry: SymmetryGroup) -> tuple[Term, ...]:
    """The terms of the lower bound, in the order that leaves no group with little to go by.

    Every shared site goes to the later of its groups. Of the spec's order and its reverse, the one
    is taken whose poorest group has the more entries attached to each unit. Groups that rescale
    their units come last, so that they have all of their sites and no other group has one of them:
    the terms are functions of the orbits.
    """
    groups = tuple(symmetry.spec)
    orders = (_ordered_terms(symmetry, _open_last(symmetry, o)) for o in (groups, groups[::-1]))
    return max(orders, key=lambda terms: sorted(UnitLayout.of(symmetry, *t).width for t in terms))


@lru_cache
def upper_terms(symmetry: SymmetryGroup) -> tuple[Term, ...] | None:
    """The terms of the upper bound, or None where a group's sites do not split into unit pairs."""
    groups = frozenset(symmetry.spec)
    terms = tuple(Term(g, separable_sites(symmetry, g, groups - {g})) for g in symmetry.spec)
    complete = all(set(sites) == set(symmetry.spec[group]) for group, sites in terms)
    return terms if complete else None


def _open_last(symmetry: SymmetryGroup, order: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(order, key=lambda group: group in symmetry.open_groups))


def _ordered_terms(symmetry: SymmetryGroup, order: tuple[str, ...]) -> tuple[Term, ...]:
    return tuple(
        Term(group, separable_sites(symmetry, group, frozenset(order[:position])))
        for position, group in enumerate(order)
    )
