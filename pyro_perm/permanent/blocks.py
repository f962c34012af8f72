r"""Permanents of matrices that all but decompose: exact on small blocks, Bethe on large ones.

Take the identity as the reference permutation, and let ``c_ij = L_jj - L_ij`` be the cost of giving
column ``j`` to row ``i``. A permutation is a set of cycles and weighs ``exp(-cost)`` relative to the
identity, so only rows on a common cycle of affordable pairs interact: the strongly connected
components of the graph of affordable pairs. The permanent is the product over these blocks.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from pyro_perm.permanent._shapes import check_square
from pyro_perm.permanent.bethe import bethe
from pyro_perm.permanent.exact import log_permanent, permutation_marginals

AFFORDABLE_COST = 20.0
"""Pairs that cost more nats than this are left out: a weight of 2e-9 beside the identity's."""

# Blocks are padded to these sizes, so that one batch serves several; larger blocks go to Bethe.
_EXACT_SIZES = (2, 4, 6, 8, 10)
_ENUMERATED_SIZE = 6


class BlockPermanent(NamedTuple):
    """Log-permanent relative to the identity's weight, shape (...), and marginals (..., n, n)."""

    log_ratio: Tensor
    marginals: Tensor


@torch.no_grad()
def permanent_by_blocks(log_matrix: Tensor) -> BlockPermanent:
    """``log perm(exp L) - sum_i L_ii`` and the marginals, block by block; without gradient.

    Blocks of up to 10 rows are summed exactly; larger ones by the Bethe approximation, which lies
    below the permanent by at most ``n/2 log 2`` nats, in practice about ``1/2 log(2 pi n / e)``
    where all entries are equal and nothing where rows are apart.

    :param log_matrix: log weights with a finite diagonal, shape (..., n, n).
    :raises ValueError: if the matrices are not square.
    """
    check_square(log_matrix)
    size = log_matrix.shape[-1]
    ratios = log_matrix.double() - log_matrix.diagonal(dim1=-2, dim2=-1).double().unsqueeze(-2)
    ratios = ratios.reshape(log_matrix.shape[:-2].numel(), size, size)
    log_ratio = ratios.new_zeros(len(ratios))
    marginals = torch.eye(size, dtype=ratios.dtype, device=ratios.device).repeat(len(ratios), 1, 1)
    for batch, rows in _blocks(ratios):
        value, marginal = _solve(_gather(ratios, batch, rows))
        log_ratio.index_add_(0, batch, value)
        _scatter(marginals, batch, rows, marginal)
    return BlockPermanent(
        log_ratio.reshape(log_matrix.shape[:-2]), marginals.reshape(log_matrix.shape)
    )


def _blocks(ratios: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Blocks of at least two rows, gathered by padded size.

    :returns: pairs of the matrix that each block belongs to, shape (b,), and its rows, shape
        (b, size), padded with -1.
    """
    num, size = ratios.shape[:2]
    affordable = (ratios > -AFFORDABLE_COST).cpu().numpy()
    affordable[:, range(size), range(size)] = False
    involved = affordable.any(1) & affordable.any(2)
    nodes = involved.ravel().nonzero()[0]
    counts = involved.sum(1)
    if counts.max(initial=0) <= _ENUMERATED_SIZE:
        # Few enough to be one block a matrix, connected or not.
        parts = np.split(nodes, counts.cumsum()[:-1])
    else:
        matrix, row, column = (affordable & involved[:, None] & involved[:, :, None]).nonzero()
        edges = (np.ones(len(row)), (matrix * size + row, matrix * size + column))
        graph = coo_array(edges, shape=(num * size,) * 2)
        _, labels = connected_components(graph, directed=True, connection="strong")
        order = nodes[labels[nodes].argsort(kind="stable")]
        parts = np.split(order, np.diff(labels[order]).nonzero()[0] + 1)
    by_size: dict[int, list[np.ndarray]] = {}
    for part in parts:
        if len(part) > 1:
            padded = next((s for s in _EXACT_SIZES if s >= len(part)), len(part))
            rows = np.full(padded, -1)
            rows[: len(part)] = part
            by_size.setdefault(padded, []).append(rows)
    return [_split(torch.from_numpy(np.stack(same)), size, ratios) for same in by_size.values()]


def _split(nodes: Tensor, size: int, ratios: Tensor) -> tuple[Tensor, Tensor]:
    batch = nodes[:, 0] // size
    rows = torch.where(nodes < 0, -1, nodes % size)
    return batch.to(ratios.device), rows.to(ratios.device)


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
        return log_permanent(block), permutation_marginals(block)
    result = bethe(block)
    return result.log_permanent, result.marginals


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


def _scatter(marginals: Tensor, batch: Tensor, rows: Tensor, block: Tensor) -> None:
    kept = (rows >= 0)[:, :, None] & (rows >= 0)[:, None, :]
    which, i, j = kept.nonzero(as_tuple=True)
    marginals[batch[which], rows[which, i], rows[which, j]] = block[which, i, j]
