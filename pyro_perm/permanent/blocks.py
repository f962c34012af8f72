r"""Permanents of matrices that all but decompose: exact on small blocks, Bethe on large ones.

Take the identity as the reference permutation, and let ``c_ij = L_jj - L_ij`` be the cost of
giving column ``j`` to row ``i``. A permutation is a set of cycles and weighs ``exp(-cost)``
relative to the identity, so only rows on a common cycle of affordable pairs interact: the
strongly connected components of the graph of affordable pairs. The permanent is the product over
these blocks.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from pyro_perm.permanent._propagation import propagate
from pyro_perm.permanent._shapes import check_square
from pyro_perm.permanent.exact import forward_backward

AFFORDABLE_COST = 16.0
"""Pairs that cost more nats than this are left out: a weight of 1e-7 beside the identity's."""

# Blocks are padded to these sizes, so that one batch serves several; larger blocks go to Bethe.
_EXACT_SIZES = (2, 4, 6, 8, 10)
_ENUMERATED_SIZE = 6

# Enough for training: the error of the Bethe permanent is of the order of the tolerance's square
# inside of the polytope, and of the tolerance where a permutation is all but certain.
_BETHE_SWEEPS, _BETHE_TOLERANCE = 100, 1e-4


_Nodes = NDArray[np.intp]


class Block(NamedTuple):
    """Blocks of one padded size that interact, each within one matrix of the batch.

    Attributes:
        matrix: the matrix that each block belongs to, in the flattened batch, shape (b,).
        rows: its rows, which are its columns too, shape (b, size); padded with 0.
        excess: marginals minus the identity, shape (b, size, size); zero where padded.
    """

    matrix: Tensor
    rows: Tensor
    excess: Tensor


class BlockPermanent(NamedTuple):
    """Log-permanent relative to the identity's weight, shape (...), and where it comes from."""

    log_ratio: Tensor
    blocks: list[Block]


@torch.no_grad()
def permanent_by_blocks(log_matrix: Tensor) -> BlockPermanent:
    """``log perm(exp L) - sum_i L_ii`` and the marginals, block by block; without gradient.

    Blocks of up to 10 rows are summed exactly; larger ones by the Bethe approximation, which lies
    below the permanent by at most ``n/2 log 2`` nats, in practice about ``1/2 log(2 pi n / e)``
    where all entries are equal and nothing where rows are apart. Outside of the blocks the
    marginals are the identity.

    :param log_matrix: log weights with a finite diagonal, shape (..., n, n).
    :raises ValueError: if the matrices are not square.
    """
    check_square(log_matrix)
    size = log_matrix.shape[-1]
    ratios = log_matrix.double() - log_matrix.diagonal(dim1=-2, dim2=-1).double().unsqueeze(-2)
    ratios = ratios.reshape(log_matrix.shape[:-2].numel(), size, size)
    log_ratio = ratios.new_zeros(len(ratios))
    blocks = []
    for matrix, rows in _blocks(ratios):
        value, marginals = _solve(_gather(ratios, matrix, rows))
        log_ratio.index_add_(0, matrix, value)
        marginals.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        blocks.append(Block(matrix, rows.clamp_min(0), marginals))
    return BlockPermanent(log_ratio.reshape(log_matrix.shape[:-2]), blocks)


def _blocks(ratios: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Blocks of at least two rows, gathered by padded size.

    :returns: pairs of the matrix that each block belongs to, shape (b,), and its rows, shape
        (b, size), padded with -1.
    """
    affordable = (ratios > -AFFORDABLE_COST).cpu().numpy()
    diagonal = np.arange(ratios.shape[-1])
    affordable[:, diagonal, diagonal] = False
    matrices: dict[int, list[int]] = {}
    rows: dict[int, list[_Nodes]] = {}
    for matrix, links in enumerate(affordable):
        nodes = np.flatnonzero(links.any(0) & links.any(1))
        for part in _components(links[nodes][:, nodes]):
            padded = next((size for size in _EXACT_SIZES if size >= len(part)), len(part))
            padding = np.full(padded - len(part), -1)
            matrices.setdefault(padded, []).append(matrix)
            rows.setdefault(padded, []).append(np.concatenate([nodes[part], padding]))
    return [
        (
            torch.tensor(matrices[size], device=ratios.device),
            torch.from_numpy(np.stack(same)).to(ratios.device),
        )
        for size, same in rows.items()
    ]


def _components(affordable: NDArray[np.bool_]) -> list[_Nodes]:
    """Strongly connected components of at least two nodes."""
    if not len(affordable):
        return []
    everything = np.arange(len(affordable))
    if len(affordable) <= _ENUMERATED_SIZE:
        return [everything]  # Few enough to be one block, connected or not.
    linked = affordable | np.eye(len(affordable), dtype=bool)
    if (linked.all(0) & linked.all(1)).any():
        return [everything]  # One node goes with all others.
    graph: Any = csr_array(affordable)
    _, labels = connected_components(graph, directed=True, connection="strong")
    order = labels.argsort(kind="stable")
    parts = np.split(order, np.diff(labels[order]).nonzero()[0] + 1)
    return [part for part in parts if len(part) > 1]


def _gather(ratios: Tensor, batch: Tensor, rows: Tensor) -> Tensor:
    """The blocks, shape (b, size, size); padded rows go with their own columns only."""
    block = ratios[batch[:, None, None], rows[:, :, None], rows[:, None, :]]
    padded = rows < 0
    block = block.masked_fill(padded[:, :, None] | padded[:, None, :], -torch.inf)
    return torch.where(torch.diag_embed(padded), 0.0, block)


def _solve(block: Tensor) -> tuple[Tensor, Tensor]:
    size = block.shape[-1]
    if size <= _ENUMERATED_SIZE:
        return _enumerate(block)
    if size <= _EXACT_SIZES[-1]:
        return forward_backward(block)
    beliefs = propagate(block, _BETHE_SWEEPS, _BETHE_TOLERANCE)
    return beliefs.log_permanent, beliefs.marginals


def _enumerate(block: Tensor) -> tuple[Tensor, Tensor]:
    """Every permutation as a 0/1 matrix: two matrix products, the fastest for many tiny blocks."""
    matrices = _permutation_matrices(block.shape[-1]).to(block)
    log_weights = block.clamp_min(-1e30).flatten(-2) @ matrices.T
    log_total = log_weights.logsumexp(-1)
    probabilities = (log_weights - log_total.unsqueeze(-1)).exp()
    return log_total, (probabilities @ matrices).reshape(block.shape)


@lru_cache
def _permutation_matrices(size: int) -> Tensor:
    """All permutation matrices, flattened, shape (size!, size * size)."""
    return torch.eye(size)[torch.tensor(list(permutations(range(size))))].flatten(-2)
