"""Constants break a symmetric group into one group for each class of interchangeable units."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pyro_perm.discovery.permutations.expressions import Atom, atoms_of, denotation, resolve
from pyro_perm.discovery.permutations.interpreter import Constant


def colour_classes(atom: Atom, constants: list[Constant]) -> tuple[Tensor, list[Constant]]:
    """Classes of an atom's units such that swapping two of one class changes no constant.

    :returns: a class label for each unit, shape ``(size,)``, and the constants that separate units.
    """
    labels = torch.zeros(atom.size, dtype=torch.long, device="cpu")
    separating = []
    for constant in constants:
        dims = [d for d, axis in enumerate(constant.axes) if _is_moved(constant, d, atom)]
        if not dims:
            continue
        if len(dims) == 1 and resolve(constant.axes[dims[0]]) is atom:
            rows = constant.content.movedim(dims[0], 0).reshape(atom.size, -1)
            _, found = torch.unique(rows, dim=0, return_inverse=True)
        else:
            found = classes_by_swapping(atom, partial(_is_invariant, constant, atom))
        if int(found.max()) > 0:
            separating.append(constant)
        labels = common_classes(labels, found)
    return labels, separating


def common_classes(first: Tensor, second: Tensor) -> Tensor:
    """Class labels such that two units are in one class if they are in both arguments."""
    labels: Tensor
    _, labels = torch.unique(torch.stack([first, second]), dim=1, return_inverse=True)
    return labels


def classes_by_swapping(atom: Atom, is_invariant: Callable[[Tensor], bool]) -> Tensor:
    """Classes of units, from a test whether a transposition leaves something invariant.

    Transpositions that do generate the symmetric groups of the classes, so comparing each unit
    with one representative of every class is enough.

    :returns: a class label for each unit, shape ``(size,)``.
    """
    representatives: list[int] = []
    labels = torch.zeros(atom.size, dtype=torch.long, device="cpu")
    for unit in range(atom.size):
        for label, representative in enumerate(representatives):
            swap = torch.arange(atom.size, device="cpu")
            swap[unit], swap[representative] = representative, unit
            if is_invariant(swap):
                labels[unit] = label
                break
        else:
            labels[unit] = len(representatives)
            representatives.append(unit)
    return labels


def _is_moved(constant: Constant, dim: int, atom: Atom) -> bool:
    """Whether an atom lies along a dimension, whose entries are not all equal."""
    return constant.content.shape[dim] > 1 and atom in atoms_of(resolve(constant.axes[dim]))


def _is_invariant(constant: Constant, atom: Atom, swap: Tensor) -> bool:
    moved = constant.content
    for dim, axis in enumerate(constant.axes):
        if _is_moved(constant, dim, atom):
            moved = moved.index_select(dim, denotation(axis, {atom: swap}))
    return torch.equal(moved, constant.content)
