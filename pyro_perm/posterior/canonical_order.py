"""A canonical order of the units: one representative of all equivalent weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_perm.symmetry import Axis, PermutationSymmetry


def canonical_order(
    values: Mapping[str, Tensor], symmetry: PermutationSymmetry
) -> dict[str, Tensor]:
    """The permutations that bring every draw into its canonical order.

    Group by group, in the order of the symmetry, units are sorted lexicographically by what belongs
    to them. Where a tensor is shared with groups that are not sorted yet, or permuted twice by the
    group itself, the entries of a unit count in ascending order, which no permutation changes. So
    equivalent draws are brought to the same values, unless distinct units agree in all of that.

    :param values: site of the symmetry -> shape ``(draws, *site shape)``.
    :returns: group -> permutation, shape ``(draws, n)``.
    """
    order: dict[str, Tensor] = {}
    for group, sites in symmetry.spec.items():
        moved = symmetry.apply(order, {site: values[site] for site in sites})
        keys = [
            _key(site, value, axis, symmetry, frozenset(order))
            for site, value in moved.items()
            for acting, axis in symmetry.actions_on(site)
            if acting == group
        ]
        order[group] = _lexicographic(torch.cat(keys, -1))
    return order


def _key(
    site: str,
    value: Tensor,
    axis: Axis,
    symmetry: PermutationSymmetry,
    sorted_groups: frozenset[str],
) -> Tensor:
    """What belongs to each unit, whatever the order of other units: shape ``(draws, n, m)``."""
    entries = axis.units(value, symmetry.site_rank(site))
    acting = [group for group, other in symmetry.actions_on(site) if other != axis]
    if set(acting) <= sorted_groups:
        return entries
    return entries.sort(-1).values


def _lexicographic(keys: Tensor) -> Tensor:
    columns = keys.movedim(-1, 1).flip(1).cpu().numpy()  # The last one is NumPy's first key.
    order = np.stack([np.lexsort(draw) for draw in columns])
    return torch.from_numpy(order).to(keys.device)
