"""Which groups can be rescaled at once, so that densities integrate over all their scales.

The integral over the scales of a group is one for each unit only where no other group that is
rescaled shares a site with it: two layers of a network that follow on each other share a matrix.
Rescaling any part of the groups is a symmetry too, and gains less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations

from pyro_perm.symmetry.group import SymmetryGroup
from pyro_perm.symmetry.separable import separable_sites

# All sets of so many groups are looked at; of more, one after the other.
_MOST_GROUPS = 16


@lru_cache
def scales_left_out(symmetry: SymmetryGroup) -> dict[str, str]:
    """The groups whose scales are left out, with the reasons.

    The others have as many units in all as can be; of equally good choices that of the last groups,
    which leaves the earlier layers' permutations the most to go by.
    """
    reasons, candidates = {}, []
    for group in symmetry.open_groups:
        others = frozenset(symmetry.spec) - {group}
        degrees = {axis.scale for _, axis in symmetry.factor(group).axes} - {0}
        if degrees - {1, -1}:
            reasons[group] = (
                f"it has degrees {sorted(degrees)}, and densities are integrated over scales of "
                "degrees 1 and -1 only"
            )
        elif set(separable_sites(symmetry, group, others)) == set(symmetry.spec[group]):
            candidates.append(group)
        else:
            reasons[group] = "it acts along two axes of one site"
    chosen = _heaviest(symmetry, candidates)
    for group in candidates:
        if group not in chosen:
            other, site = next(
                (other, site)
                for other in chosen
                for site in symmetry.spec[group]
                if site in symmetry.spec[other]
            )
            reasons[group] = f"it shares site '{site}' with group '{other}', which is rescaled"
    return reasons


def _heaviest(symmetry: SymmetryGroup, candidates: Sequence[str]) -> tuple[str, ...]:
    """The groups with the most units of which no two share a site."""
    spec, sizes = symmetry.spec, symmetry.groups
    meeting = {
        pair for pair in combinations(candidates, 2) if spec[pair[0]].keys() & spec[pair[1]].keys()
    }
    sets: list[tuple[str, ...]] = [()]
    for number, group in enumerate(reversed(candidates)):
        free = (s for s in sets if not any((group, other) in meeting for other in s))
        sets += [(group, *s) for s in free]
        if number >= _MOST_GROUPS:
            sets = [max(sets, key=lambda s: _weight(sizes, s))]
    return max(sets, key=lambda s: _weight(sizes, s))


def _weight(sizes: Mapping[str, int], groups: tuple[str, ...]) -> int:
    return sum(sizes[group] for group in groups)
