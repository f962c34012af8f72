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

# Pairs that cost more nats are left out: a weight of 1e-7 beside the identity's. Blocks that are
# too large to be summed exactly are cut at lower costs, if what is cut weighs little in all.
_AFFORDABLE_COSTS = (16.0, 8.0, 4.0)
_NEGLIGIBLE_WEIGHT = 0.01

_SMALLEST_MARGINAL = 1e-30

# Blocks are padded to these sizes, so that one batch serves several; larger blocks go to Bethe.
_EXACT_SIZES = (2, 4, 6, 8, 10)
_ENUMERATED_SIZE = 6

# Enough for training: on blocks of trained layers the value is mostly within 1e-4 nats of the fixed
# point's and at worst 0.02, the marginals within a percent: less than the Bethe approximation errs.
_BETHE_SWEEPS, _BETHE_TOLERANCE = 50, 3e-4


_Nodes = NDArray[np.intp]


class BlockPermanent(NamedTuple):
    """The permanent relative to the identity's weight.

    Attributes:
        log_ratio: its logarithm, shape (...).
        excess: marginals minus the identity, shape (..., n, n), or None where all are zero.
    """

    log_ratio: Tensor
    excess: Tensor | None


@torch.no_grad()
def permanent_by_blocks(log_matrix: Tensor) -> BlockPermanent:
    """``log perm(exp L) - sum_i L_ii`` and the marginals, block by block; without gradient.

    Blocks of up to 10 rows are summed exactly; larger ones by the Bethe approximation, which lies
    below the permanent by at most ``n/2 log 2`` nats, in practice about ``1/2 log(2 pi n / e)``
    where all entries are equal and nothing where rows are apart. What is left out lowers the
    result: pairs of a weight below 1e-7, and between parts of a larger block pairs whose swaps
    together weigh less than 0.01. Outside of the blocks the marginals are the identity.

    >>> log_matrix = torch.full((4, 4), -50.0)
    >>> log_matrix[:2, :2] = log_matrix[2:, 2:] = 0.0  # two pairs of units that look alike
    >>> permanent_by_blocks(log_matrix).log_ratio.exp()
    tensor(4., dtype=torch.float64)

    :param log_matrix: log weights with a finite diagonal, shape (..., n, n).
    :raises ValueError: if the matrices are not square.
    """
    check_square(log_matrix)
    batch, size = log_matrix.shape[:-2], log_matrix.shape[-1]
    ratios = log_matrix.double() - log_matrix.diagonal(dim1=-2, dim2=-1).double().unsqueeze(-2)
    ratios = ratios.reshape(batch.numel(), size, size)
    blocks = _blocks(ratios)
    if not blocks:
        return BlockPermanent(ratios.new_zeros(batch), None)
    log_ratio = ratios.new_zeros(len(ratios))
    # The last row and column are for the padding.
    excess = ratios.new_zeros(len(ratios), size + 1, size + 1)
    for matrix, rows in blocks:
        value, marginals = _solve(_gather(ratios, matrix, rows))
        log_ratio.index_add_(0, matrix, value)
        # Products with denormal numbers, which these become in single precision, are slow.
        marginals.masked_fill_(marginals < _SMALLEST_MARGINAL, 0.0)
        marginals.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        excess[matrix[:, None, None], rows[:, :, None], rows[:, None, :]] = marginals
    return BlockPermanent(
        log_ratio.reshape(batch), excess[:, :size, :size].reshape(*batch, size, size)
    )


def _blocks(ratios: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Blocks of at least two rows, gathered by padded size.

    :returns: pairs of the matrix that each block belongs to, shape (b,), and its rows, shape
        (b, size), padded with -1.
    """
    weights = ratios.cpu().numpy()
    matrices: dict[int, list[int]] = {}
    rows: dict[int, list[_Nodes]] = {}
    for matrix, log_weights in enumerate(weights):
        for part in _components(log_weights, np.arange(len(log_weights)), _AFFORDABLE_COSTS):
            padded = next((size for size in _EXACT_SIZES if size >= len(part)), len(part))
            padding = np.full(padded - len(part), -1)
            matrices.setdefault(padded, []).append(matrix)
            rows.setdefault(padded, []).append(np.concatenate([part, padding]))
    return [
        (
            torch.tensor(matrices[size], device=ratios.device),
            torch.from_numpy(np.stack(same)).to(ratios.device),
        )
        for size, same in rows.items()
    ]


def _components(
    log_weights: NDArray[np.float64], nodes: _Nodes, costs: tuple[float, ...]
) -> list[_Nodes]:
    """Sets of at least two nodes that interact, split further while they are too large to sum.

    A cut is made at a lower cost only where the swaps that it gives up weigh next to nothing.
    """
    within = log_weights[nodes][:, nodes]
    parts = [nodes[part] for part in _strongly_connected(within > -costs[0])]
    settled = []
    for part in parts:
        done = len(part) <= _EXACT_SIZES[-1] or len(costs) == 1
        if done or _has_hub(log_weights[part][:, part] > -costs[-1]):
            settled.append(part)
            continue
        finer = _components(log_weights, part, costs[1:])
        cheap = _weight_of_swaps_between(log_weights, part, finer) < _NEGLIGIBLE_WEIGHT
        settled += finer if cheap else [part]
    return settled


def _strongly_connected(links: NDArray[np.bool_]) -> list[_Nodes]:
    np.fill_diagonal(links, False)
    nodes = np.flatnonzero(links.any(0) & links.any(1))
    if len(nodes) <= _ENUMERATED_SIZE:  # Few enough to be one block, connected or not.
        return [nodes] if len(nodes) else []
    links = links[nodes][:, nodes]
    if _has_hub(links):
        return [nodes]
    _, labels = connected_components(_sparse(links), directed=True, connection="strong")
    order = labels.argsort(kind="stable")
    parts = np.split(nodes[order], np.diff(labels[order]).nonzero()[0] + 1)
    return [part for part in parts if len(part) > 1]


def _sparse(links: NDArray[np.bool_]) -> Any:
    """As ``csr_array(links)``, in a third of the time."""
    ends = np.zeros(len(links) + 1, dtype=np.int32)
    links.sum(1).cumsum(out=ends[1:])
    columns = (np.flatnonzero(links) % len(links)).astype(np.int32)
    return csr_array((np.ones(len(columns)), columns, ends), shape=links.shape)


def _has_hub(links: NDArray[np.bool_]) -> bool:
    """Whether one node is linked with all others, both ways: a quick sign of one component."""
    both = links & links.T
    np.fill_diagonal(both, True)
    return bool(both.all(0).any())


def _weight_of_swaps_between(
    log_weights: NDArray[np.float64], nodes: _Nodes, parts: list[_Nodes]
) -> float:
    """Weight, relative to the identity, of all swaps of two nodes of different parts."""
    label = np.zeros(len(log_weights), dtype=int)
    label[nodes] = -1 - np.arange(len(nodes))  # A node in no part is a part of its own.
    for number, part in enumerate(parts):
        label[part] = number
    within = log_weights[nodes][:, nodes]
    apart = label[nodes][:, None] != label[nodes]
    return float(np.exp((within + within.T)[apart]).sum() / 2)


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
