"""A canonical order of the units: one representative of all equivalent weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_perm.symmetry import Axis, SymmetryGroup


def canonical_order(values: Mapping[str, Tensor], symmetry: SymmetryGroup) -> dict[str, Tensor]:
    """The permutations that bring every draw into its canonical order.

    Group by group, in the order of the symmetry, units are sorted lexicographically by what belongs
    to them. Where a tensor is shared with groups that are not sorted yet, or permuted twice by the
    group itself, the entries of a unit count in ascending order, which no permutation changes. A
    unit whose sign may flip has its first entry positive that is not shared in this way; where its
    sign may still change, entries count by their size. So equivalent draws are brought to the same
    values, unless distinct units agree in all of that.

    :param values: site of the symmetry -> shape ``(draws, *site shape)``.
    :returns: group -> permutation, shape ``(draws, n)``.
    """
    order: dict[str, Tensor] = {}
    for group in symmetry.spec:
        order[group] = _order_of_units(values, symmetry, group, order)
    return order


def _order_of_units(
    values: Mapping[str, Tensor],
    symmetry: SymmetryGroup,
    group: str,
    order: Mapping[str, Tensor],
) -> Tensor:
    moved = symmetry.apply(order, {site: values[site] for site in symmetry.spec[group]})
    settled, shared = [], []
    for site, value in moved.items():
        acting = symmetry.actions_on(site)
        for axis in (axis for other, axis in acting if other == group):
            entries = axis.units(value, symmetry.site_rank(site))
            pending = [a for other, a in acting if a != axis and other not in order]
            if pending:
                flips = any(a.sign for a in (axis, *pending))
                shared.append((entries.abs() if flips else entries).sort(-1).values)
            else:
                settled.append((entries, axis))
    flipped = _first_is_negative([entries for entries, axis in settled if axis.sign])
    keys = [_where_flipped(entries, axis, flipped) for entries, axis in settled] + shared
    units = _lexicographic(torch.cat(keys, -1))
    return units if flipped is None else torch.where(flipped.gather(-1, units), ~units, units)


def _first_is_negative(entries: list[Tensor]) -> Tensor | None:
    """Whether the first entry of each unit that is not zero is negative, shape ``(draws, n)``."""
    if not entries:
        return None
    joined = torch.cat(entries, -1)
    first = (joined != 0).int().argmax(-1, keepdim=True)
    return joined.gather(-1, first).squeeze(-1) < 0


def _where_flipped(entries: Tensor, axis: Axis, flipped: Tensor | None) -> Tensor:
    if not axis.sign or flipped is None:
        return entries
    return torch.where(flipped[..., None], -entries, entries)


def _lexicographic(keys: Tensor) -> Tensor:
    columns = keys.movedim(-1, 1).flip(1).cpu().numpy()  # The last one is NumPy's first key.
    order = np.stack([np.lexsort(draw) for draw in columns])
    return torch.from_numpy(order).to(keys.device)
