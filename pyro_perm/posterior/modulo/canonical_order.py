"""A canonical order of the units: one representative of all equivalent weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.elements import AnyElement, compose, transform
from pyro_perm.symmetry.factor import Factor


def order_of_units(values: Mapping[str, Tensor], symmetry: SymmetryGroup) -> dict[str, AnyElement]:
    """The elements that bring every draw into its canonical order.

    Group by group, in the order of the symmetry, units are sorted lexicographically by what belongs
    to them. Where a tensor is shared with groups that are not sorted yet, or permuted twice by the
    group itself, the entries of a unit count in ascending order, which no permutation changes.
    Where a group acts on each unit by itself, the unit takes the image that is lexicographically
    largest in what is not shared in this way: its first entry is then positive where units flip;
    of what is shared, that counts which no such action changes. So equivalent draws are brought to
    the same values, unless distinct units agree in all of that.

    :param values: site of the symmetry -> shape ``(draws, *site shape)``.
    :returns: group -> permutation or element, shape ``(draws, n)``.
    """
    order: dict[str, AnyElement] = {}
    for factor in symmetry.factors:
        order[factor.name] = _order_of_group(values, symmetry, factor, order)
    return order


def _order_of_group(
    values: Mapping[str, Tensor],
    symmetry: SymmetryGroup,
    factor: Factor,
    order: Mapping[str, AnyElement],
) -> AnyElement:
    moved = symmetry.apply(order, {site: values[site] for site in symmetry.spec[factor.name]})
    device = next(iter(moved.values())).device
    settled, shared = [], []
    for site, value in moved.items():
        rank, acting = symmetry.site_rank(site), symmetry.actions_on(site)
        for axis in (axis for other, axis in acting if other == factor.name):
            pending = [(other, a) for other, a in acting if a != axis and other not in order]
            if pending:
                entries = axis.units(value, rank)
                for group, along in ((factor.name, axis), *pending):
                    for action in symmetry.factor(group).actions:
                        entries = action.invariant(entries, along)
                shared.append(entries.sort(-1).values)
            else:
                each = (motion.apply(value, axis, rank) for motion in factor.image_motions())
                settled.append([axis.units(image, rank) for image in each])
    image: AnyElement = factor.identity(device)
    if settled:
        keys, chosen = _largest([torch.cat(each, -1) for each in zip(*settled, strict=True)])
        image = transform(lambda part: part.to(device).gather(0, chosen), factor.images())
        shared.insert(0, keys)
    if not factor.permutes:
        return compose(factor.identity(device).expand(len(shared[0]), -1), image)
    return compose(_lexicographic(torch.cat(shared, -1)), image)


def _largest(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The lexicographically largest image of each unit, the first of equals.

    :param images: shape ``(draws, n, entries)`` each.
    :returns: its entries, and its number, shape ``(draws, n)``.
    """
    largest = images[0]
    number = torch.zeros(largest.shape[:-1], dtype=torch.long, device=largest.device)
    for other, image in enumerate(images[1:], start=1):
        first = (image != largest).int().argmax(-1, keepdim=True)
        larger = image.gather(-1, first) > largest.gather(-1, first)
        largest = torch.where(larger, image, largest)
        number = torch.where(larger.squeeze(-1), other, number)
    return largest, number


def _lexicographic(keys: Tensor) -> Tensor:
    columns = keys.movedim(-1, 1).flip(1).cpu().numpy()  # The last one is NumPy's first key.
    order = np.stack([np.lexsort(draw) for draw in columns])
    return torch.from_numpy(order).to(keys.device)
