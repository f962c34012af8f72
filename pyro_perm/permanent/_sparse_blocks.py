r"""Which rows of a large matrix may lie in blocks, where pairs that cost little are rare.

As :mod:`pyro_perm.permanent.blocks` finds blocks, on a list of these pairs in place of all pairs:
what it returns is a superset, on which blocks are found anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # loads its parts when they are first used
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_perm.permanent.blocks import (
    AFFORDABLE_COSTS,
    EXACT_SIZES,
    MANY_NODES,
    NEGLIGIBLE_WEIGHT,
)

# So many rows, roughly, tell whether pairs that cost little are rare.
_FEW_ROWS, _RARE = 16, 0.02

_Nodes = NDArray[np.intp]


class _Links(NamedTuple):
    """Pairs of different nodes at an affordable cost.

    Attributes:
        start: the row of each, shape ``(links,)``.
        end: the column.
        log_weights: minus the cost.
        log_back: the same of the pair's transpose, which may be no link.
    """

    start: _Nodes
    end: _Nodes
    log_weights: NDArray[np.float64]
    log_back: NDArray[np.float64]

    def where(self, chosen: NDArray[np.bool_]) -> _Links:
        """Some of them."""
        return _Links(
            self.start[chosen], self.end[chosen], self.log_weights[chosen], self.log_back[chosen]
        )


@torch.no_grad()
def rows_in_blocks(log_matrix: Tensor) -> Tensor | None:
    """A few rows that all blocks lie in, or None where there may be many.

    :param log_matrix: log weights with a finite diagonal, shape ``(..., n, n)``.
    :returns: their numbers in order, whichever matrix of the batch it is.
    """
    size = log_matrix.shape[-1]
    if size <= MANY_NODES:
        return None
    rows: list[_Nodes] = []
    for matrix in log_matrix.reshape(-1, size, size):
        least = matrix.diagonal() - AFFORDABLE_COSTS[0]
        few = matrix[:: size // _FEW_ROWS]
        if (few > least).sum() > _RARE * few.numel():
            return None
        rows += _parts(_links(matrix, least), size, AFFORDABLE_COSTS)
    found = np.unique(np.concatenate(rows)) if rows else np.empty(0, np.intp)
    return torch.from_numpy(found).to(log_matrix.device) if 2 * len(found) < size else None


def _links(matrix: Tensor, least: Tensor) -> _Links:
    affordable = (matrix > least).fill_diagonal_(False).cpu().numpy()
    start, end = np.divmod(np.flatnonzero(affordable), len(affordable))
    rows, columns = (torch.from_numpy(part).to(matrix.device) for part in (start, end))
    diagonal = matrix.diagonal()
    weights = matrix[rows, columns] - diagonal[columns], matrix[columns, rows] - diagonal[rows]
    return _Links(start, end, *(part.double().cpu().numpy() for part in weights))


def _parts(links: _Links, size: int, costs: tuple[float, ...]) -> list[_Nodes]:
    """Sets of at least two nodes that may interact, split as blocks are."""
    links = _in_cycles(links, size, costs[0])
    # SciPy before 1.12 reads 32-bit indices alone.
    ends = links.start.astype(np.int32), links.end.astype(np.int32)
    graph = scipy.sparse.csr_array((np.ones(len(links.start)), ends), (size, size))
    _, labels = scipy.sparse.csgraph.connected_components(graph, directed=True, connection="strong")
    sizes = np.bincount(labels, minlength=size)
    links = links.where(labels[links.start] == labels[links.end])
    settled = []
    for label in np.flatnonzero(sizes > 1):
        part = np.flatnonzero(labels == label)
        if len(part) > EXACT_SIZES[-1] and len(costs) > 1:
            within = links.where(labels[links.start] == label)
            finer = _parts(within, size, costs[1:])
            if _weight_of_swaps_between(within, size, finer) < NEGLIGIBLE_WEIGHT:
                settled += finer
                continue
        settled.append(part)
    return settled


def _in_cycles(links: _Links, size: int, cost: float) -> _Links:
    """Those that a cycle of at most this cost may contain, by what its way back costs at least."""
    out, into = np.full((2, size), -np.inf)
    np.maximum.at(out, links.start, links.log_weights)
    np.maximum.at(into, links.end, links.log_weights)
    saved = out.clip(0.0).sum()
    back = np.minimum(into[links.start], out[links.end])
    return links.where(links.log_weights + np.minimum(back + saved, 0.0) > -cost)


def _weight_of_swaps_between(links: _Links, size: int, parts: list[_Nodes]) -> float:
    """Weight, relative to the identity, of all swaps of two nodes of different parts."""
    label = -1 - np.arange(size)  # A node in no part is a part of its own.
    for number, part in enumerate(parts):
        label[part] = number
    apart = links.where(label[links.start] != label[links.end])
    swaps = np.exp(apart.log_weights + apart.log_back)
    # A swap of two links is met twice.
    return float(np.where(apart.log_back > -AFFORDABLE_COSTS[0], 0.5, 1.0) @ swaps)
