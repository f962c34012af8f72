"""Which sites of a symmetry split into unit pairs, group by group.

Everything here depends on the symmetry alone, and is remembered, since training asks at every step.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

from pyro_perm.symmetry.group import SymmetryGroup


@lru_cache
def separable_sites(
    symmetry: SymmetryGroup, group: str, fixed: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Sites whose density splits into unit pairs of this group.

    These are the group's sites on which no other group, save the ``fixed`` ones, permutes the same
    entries, and which the group itself permutes along one dimension only. A simplex is none of
    them: in unconstrained space it has fewer coordinates than entries.
    """
    free = set(symmetry.spec) - fixed | {group}
    return tuple(
        site for site in symmetry.spec[group] if _is_separable(symmetry, site, group, free)
    )


@lru_cache
def coupled_sites(symmetry: SymmetryGroup) -> tuple[str, ...]:
    """Sites whose density splits into unit pairs of no single group."""
    return tuple(
        site
        for site in symmetry.sites
        if any(
            site not in separable_sites(symmetry, group) for group, _ in symmetry.actions_on(site)
        )
    )


@lru_cache
def elementwise_sites(symmetry: SymmetryGroup) -> tuple[str, ...]:
    """Sites whose density under a given element is not a sum over matrices of unit pairs.

    These are the coupled sites, and all sites of groups that act on units by themselves: unit pairs
    sum over what these do.
    """
    acted_on = (site for group in symmetry.acting_groups for site in symmetry.spec[group])
    return tuple(dict.fromkeys((*coupled_sites(symmetry), *acted_on)))


@lru_cache
def uncoupled_groups(symmetry: SymmetryGroup, candidates: tuple[str, ...]) -> tuple[str, ...]:
    """The largest of some groups whose sites all split into unit pairs, given all other groups.

    Those that rescale their units are among them first of all.
    """
    chosen: list[str] = []
    open_groups, sizes = symmetry.open_groups, symmetry.groups
    for group in sorted(candidates, key=lambda name: (name not in open_groups, -sizes[name])):
        others = frozenset(symmetry.spec) - {*chosen, group}
        if separable_sites(symmetry, group, others) == tuple(symmetry.spec[group]):
            chosen.append(group)
    return tuple(chosen)


def _is_separable(symmetry: SymmetryGroup, site: str, group: str, free: set[str]) -> bool:
    if symmetry.is_simplex(site):
        return False
    length = symmetry.site_shape(site)
    acting = [(g, axis) for g, axis in symmetry.actions_on(site) if g in free]
    return all(
        group not in (g, h) or axis.is_disjoint_from(other, length[axis.dim])
        for (g, axis), (h, other) in combinations(acting, 2)
    )
