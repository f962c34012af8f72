r"""Permanents of matrices that all but decompose: exact on small blocks, Bethe on large ones.

Take the identity as the reference permutation, and let ``c_ij = L_jj - L_ij`` be the cost of
giving column ``j`` to row ``i``. A permutation is a set of cycles and weighs ``exp(-cost)``
relative to the identity, so only rows on a common affordable cycle interact: they lie in one
strongly connected component of the graph of pairs that such a cycle may contain. The permanent is
the product over these blocks.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import scipy  # loads its parts when they are first used
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_perm.permanent._bethe_bias import log_bethe_bias
from pyro_perm.permanent._derivatives import require_first_derivative
from pyro_perm.permanent._precision import in_sufficient_precision
from pyro_perm.permanent._propagation import propagate
from pyro_perm.permanent._shapes import check_square
from pyro_perm.permanent.exact import forward_backward

# Cycles that cost more nats are left out: a weight of 2e-9 beside the identity's. Blocks that are
# too large to be summed exactly are cut at lower costs, if what is cut weighs little in all.
AFFORDABLE_COSTS = (20.0, 8.0, 4.0)
NEGLIGIBLE_WEIGHT = 0.01

_SMALLEST_MARGINAL = 1e-30

# Blocks are padded to these sizes, by a row at most, so that one batch serves several. Larger ones
# go to Bethe.
EXACT_SIZES = (2, 4, 6, 8, 10)
_ENUMERATED_SIZE = 6

# In graphs up to this size a few matrix products are quicker than a sparse matrix.
_FEW_NODES = 64

# In dense graphs from this size on a component that most nodes belong to is looked for first.
MANY_NODES = 256

# Enough for training: on blocks of trained layers the value is mostly within 1e-4 nats of the fixed
# point's and at worst 0.02, the marginals within a percent: less than the Bethe approximation errs.
_BETHE_SWEEPS, _BETHE_TOLERANCE = 50, 3e-4

_LOG_OF_NOTHING = -1e30

_Nodes = NDArray[np.intp]
_Matrices = NDArray[np.float64]


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

    Blocks of up to 10 rows are summed exactly; larger ones by the Bethe approximation, less its
    bias (see ``pyro_perm.permanent._bethe_bias``), which leaves a tenth of a nat where a block is
    of one piece, and more where it falls into loosely linked parts. The marginals are the Bethe
    approximation's. What is left out lowers the result: cycles of a weight below 2e-9, and between
    parts of a larger block pairs whose swaps together weigh less than 0.01. Outside of the blocks
    the marginals are the identity. Up to 256 rows are summed in double precision, more in the
    matrix's own: single precision then costs less than 1e-3 nats.

    >>> import torch
    >>> from pyro_perm.permanent import permanent_by_blocks
    >>> log_matrix = torch.full((4, 4), -50.0)
    >>> log_matrix[:2, :2] = log_matrix[2:, 2:] = 0.0  # two pairs of units that look alike
    >>> permanent_by_blocks(log_matrix).log_ratio.exp()
    tensor(4., dtype=torch.float64)

    :param log_matrix: log weights with a finite diagonal, shape (..., n, n).
    :raises ValueError: if the matrices are not square.
    """
    check_square(log_matrix)
    batch, size, device = log_matrix.shape[:-2], log_matrix.shape[-1], log_matrix.device
    weights = in_sufficient_precision(log_matrix).cpu().numpy().reshape(batch.numel(), size, size)
    # The last row and column pad blocks: that node goes with itself only.
    ratios = np.empty((len(weights), size + 1, size + 1), weights.dtype)
    ratios[:, size], ratios[:, :, size] = -np.inf, -np.inf
    np.subtract(weights, weights.diagonal(0, 1, 2)[:, None], out=ratios[:, :size, :size])
    diagonals = np.einsum("bii->bi", ratios)
    diagonals[:] = -np.inf
    blocks = _blocks(ratios[:, :size, :size])
    diagonals[:] = 0.0
    log_ratio, excess = np.zeros(len(weights)), None
    for matrix, rows in blocks:
        # Copies of large matrices would cost more than the arithmetic.
        whole = rows.shape == (len(weights), size)
        where = matrix[:, None, None], rows[:, :, None], rows[:, None, :]
        value, marginals = _solve(ratios[:, :size, :size] if whole else ratios[where], device)
        np.add.at(log_ratio, matrix, value)
        # Products with denormal numbers, which these become in single precision, are slow.
        torch.threshold_(torch.from_numpy(marginals), _SMALLEST_MARGINAL, 0.0)
        np.einsum("bii->bi", marginals)[:] -= 1.0
        if whole:
            excess = marginals
        else:
            excess = np.zeros_like(ratios) if excess is None else excess
            excess[where] = marginals
    if excess is not None:
        excess = excess[:, :size, :size].reshape(*batch, size, size)
    return BlockPermanent(
        torch.from_numpy(log_ratio.reshape(batch)).to(device),
        None if excess is None else torch.from_numpy(excess).to(device),
    )


def log_permanent_by_blocks(log_matrix: Tensor) -> Tensor:
    """The same ``log perm(exp L) - sum_i L_ii`` with its gradient, as one operator.

    ``torch.jit.trace`` records the operator, and none of the decisions in it that depend on the
    data. Elsewhere it costs more than :func:`permanent_by_blocks`.

    :param log_matrix: as there.
    :returns: shape (...), in double precision.
    :raises RuntimeError: where second derivatives are asked for.
    """
    log_ratio: Tensor = _operator(log_matrix)[0]
    return log_ratio


@torch.library.custom_op(
    "pyro_perm::permanent_by_blocks",
    mutates_args=(),
    schema="(Tensor log_matrix) -> (Tensor, Tensor)",
)
def _operator(log_matrix: Tensor) -> tuple[Tensor, Tensor]:
    log_ratio, excess = permanent_by_blocks(log_matrix)
    if excess is None:
        excess = torch.zeros_like(log_matrix, dtype=torch.float64)
    return log_ratio, excess


def _save_excess(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _gradient(ctx: Any, grad_log_ratio: Tensor, _: Tensor) -> Tensor:
    require_first_derivative("the permanent by blocks")
    (excess,) = ctx.saved_tensors
    gradient: Tensor = grad_log_ratio[..., None, None] * excess
    return gradient


_operator.register_autograd(_gradient, setup_context=_save_excess)


def _blocks(log_weights: _Matrices) -> list[tuple[_Nodes, _Nodes]]:
    """Blocks of at least two rows, gathered by padded size.

    :param log_weights: minus the costs, their diagonals minus infinity.
    :returns: pairs of the matrix that each block belongs to, shape (b,), and its rows, shape
        (b, size), padded with the number of rows of a matrix.
    """
    found: dict[int, list[tuple[int, _Nodes]]] = {}
    for matrix, each in enumerate(log_weights):
        for part in _components(each, AFFORDABLE_COSTS):
            padded = next((size for size in EXACT_SIZES if size >= len(part)), len(part))
            rows = part if padded == len(part) else np.append(part, len(each))
            found.setdefault(padded, []).append((matrix, rows))
    return [
        (np.array([matrix for matrix, _ in same]), np.array([rows for _, rows in same]))
        for same in found.values()
    ]


def _components(log_weights: NDArray[np.float64], costs: tuple[float, ...]) -> list[_Nodes]:
    """Sets of at least two nodes that interact, split further while they are too large to sum.

    A cut is made at a lower cost only where the swaps that it gives up weigh next to nothing.
    """
    settled = []
    for part in _strongly_connected(_links(log_weights, costs[0])):
        if len(part) <= EXACT_SIZES[-1] or len(costs) == 1:
            settled.append(part)
            continue
        whole = len(part) == len(log_weights)
        within = log_weights if whole else log_weights[part][:, part]
        if _has_hub(within > -costs[-1]):
            settled.append(part)
            continue
        finer = _components(within, costs[1:])
        cheap = _weight_of_swaps_between(within, finer) < NEGLIGIBLE_WEIGHT
        settled += [part[nodes] for nodes in finer] if cheap else [part]
    return settled


def _links(log_weights: NDArray[np.float64], cost: float) -> NDArray[np.bool_]:
    """Pairs of different nodes that a cycle of at most this cost may contain.

    Besides the pair it has a way back, from the pair's end to its beginning, which costs no less
    than the cheapest pair at either; elsewhere it saves no more than all rows could.

    :param log_weights: minus the costs, their diagonal minus infinity.
    """
    out = log_weights.max(1, initial=-np.inf)
    links: NDArray[np.bool_] = log_weights > -cost
    saved = out.clip(0.0).sum()
    if saved < cost and (out > -cost).any():
        into = log_weights.max(0)
        if min(out.min(), into.min()) < -saved:
            start, end = links.nonzero()
            back = np.minimum(into[start], out[end])
            links[start, end] = log_weights[start, end] + np.minimum(back + saved, 0.0) > -cost
    return links


def _strongly_connected(links: NDArray[np.bool_]) -> list[_Nodes]:
    nodes = np.flatnonzero(links.any(0) & links.any(1))
    if len(nodes) <= _ENUMERATED_SIZE:  # Few enough to be one block, connected or not.
        return [nodes] if len(nodes) else []
    if len(nodes) < len(links):
        links = links[nodes][:, nodes]
    if _has_hub(links):
        return [nodes]
    num_links = np.count_nonzero(links, axis=1)
    if len(nodes) > MANY_NODES and 2 * num_links.max() > len(nodes):
        most = _component_of(int(num_links.argmax()), links)
        if 2 * most.sum() > len(nodes):
            others = _strongly_connected(links[np.ix_(~most, ~most)])
            return [nodes[most], *(nodes[~most][part] for part in others)]
    labels = _labels(links)
    repeated = np.flatnonzero(np.bincount(labels) > 1)
    return [nodes[labels == label] for label in repeated]


def _component_of(node: int, links: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The strongly connected component of a node, as a mask."""
    return _reached(node, links) & _reached(node, links.T)


def _reached(start: int, links: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All nodes that there is a path to: in dense graphs after few steps."""
    reached: NDArray[np.bool_] = links[start].copy()
    reached[start] = True
    last = np.flatnonzero(reached)
    while len(last):
        left = np.flatnonzero(~reached)
        last = left[links[np.ix_(last, left)].any(0)]
        reached[last] = True
    return reached


def _labels(links: NDArray[np.bool_]) -> _Nodes:
    """A number for each node, the same for those of one strongly connected component."""
    if len(links) > _FEW_NODES:
        _, labels = scipy.sparse.csgraph.connected_components(
            _sparse(links), directed=True, connection="strong"
        )
    else:
        reached = np.eye(len(links)) + links
        for _ in range(len(links).bit_length()):  # Paths of twice the length each time.
            reached = np.minimum(reached @ reached, 1.0)
        labels = (reached * reached.T).argmax(1)
    return np.asarray(labels, dtype=np.intp)


def _sparse(links: NDArray[np.bool_]) -> Any:
    """As ``csr_array(links)``, in a third of the time."""
    ends = np.zeros(len(links) + 1, dtype=np.int32)
    links.sum(1).cumsum(out=ends[1:])
    columns = (np.flatnonzero(links) % len(links)).astype(np.int32)
    return scipy.sparse.csr_array((np.ones(len(columns)), columns, ends), shape=links.shape)


def _has_hub(links: NDArray[np.bool_]) -> bool:
    """Whether a node is linked with all others, both ways: a quick sign of one component."""
    reached = links | np.eye(len(links), dtype=bool)
    return bool((reached.all(0) & reached.all(1)).any())


def _weight_of_swaps_between(log_weights: NDArray[np.floating], parts: list[_Nodes]) -> float:
    """Weight, relative to the identity, of all swaps of two nodes of different parts."""
    label = -1 - np.arange(len(log_weights))  # A node in no part is a part of its own.
    for number, part in enumerate(parts):
        label[part] = number
    apart = label[:, None] != label
    largest = max(range(len(parts)), key=lambda number: len(parts[number]), default=-1)
    rest = np.flatnonzero(label != largest)
    if 2 * len(rest) > len(label):
        return float(np.exp((log_weights + log_weights.T)[apart]).sum() / 2)
    # All of these swaps move a node that is outside of the largest part, some of them two.
    log_swaps = log_weights[rest] + log_weights[:, rest].T
    weights = np.exp(np.where(apart[rest], log_swaps, -np.inf))
    return float(weights.sum() - weights[:, rest].sum() / 2)


def _solve(blocks: _Matrices, device: torch.device) -> tuple[_Matrices, _Matrices]:
    size = blocks.shape[-1]
    if size <= _ENUMERATED_SIZE:
        return _enumerate(blocks.astype(np.double, copy=False))
    log_matrices = torch.from_numpy(blocks).to(device)
    if size <= EXACT_SIZES[-1]:
        value, marginals = (part.cpu().numpy() for part in forward_backward(log_matrices.double()))
        return value, marginals
    beliefs = propagate(log_matrices, _BETHE_SWEEPS, _BETHE_TOLERANCE)
    marginals = beliefs.marginals.cpu().numpy()
    return beliefs.log_permanent.cpu().numpy() + log_bethe_bias(marginals), marginals


def _enumerate(blocks: _Matrices) -> tuple[_Matrices, _Matrices]:
    """Every permutation as a 0/1 matrix: two matrix products, the fastest for many tiny blocks."""
    matrices = _permutation_matrices(blocks.shape[-1])
    log_weights = blocks.clip(_LOG_OF_NOTHING).reshape(len(blocks), -1) @ matrices.T
    largest = log_weights.max(-1, keepdims=True)
    weights = np.exp(log_weights - largest)
    total = weights.sum(-1, keepdims=True)
    marginals = (weights / total) @ matrices
    return (largest + np.log(total))[:, 0], marginals.reshape(blocks.shape)


@lru_cache
def _permutation_matrices(size: int) -> _Matrices:
    """All permutation matrices, flattened, shape (size!, size * size)."""
    orders = np.array(list(permutations(range(size))))
    matrices: _Matrices = np.eye(size)[orders].reshape(-1, size * size)
    return matrices
