r"""The permanent by recursion over subsets of columns.

Let :math:`F(S)` sum the weights of all ways to give the first :math:`|S|` rows the
columns of :math:`S`. Then :math:`F(\emptyset) = 1`,

.. math:: F(S) = \sum_{j \in S} F(S \setminus j) \, e^{L_{|S|, j}},
          \qquad \operatorname{perm}(e^L) = F(\{1, \dots, n\}),

which takes :math:`n 2^{n-1}` products in place of :math:`n!`. With :math:`B(S)` the same
sum for the remaining rows and columns, a permutation drawn with probability proportional
to its weight maps row i to column j with probability

.. math:: P_{ij} = \sum_{|S| = i,\, j \in S} F(S \setminus j) \, e^{L_{ij}} \, B(S)
          \,/\, \operatorname{perm}(e^L),

and :math:`\partial \log \operatorname{perm}(e^L) / \partial L_{ij} = P_{ij}`. All sums are
taken as logarithms in float64, so that no scaling of the entries can over- or underflow.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyro_perm.permanent._derivatives import require_reverse_mode
from pyro_perm.permanent._shapes import check_square

MAX_SIZE = 20
# Tables of all sizes up to this one take 17 MB, and that of 20 rows alone would take 170.
_LARGEST_REMEMBERED = 16

_Tables = list[tuple[Tensor, Tensor]]


def log_permanent(log_matrix: Tensor) -> Tensor:
    """Log-permanent of ``exp(log_matrix)``, exact, in nats.

    Computed in float64. The gradient is :func:`permutation_marginals`, and differentiable in turn
    where all entries are finite.

    >>> import torch
    >>> from pyro_perm.permanent import log_permanent
    >>> log_permanent(torch.zeros(3, 3)).exp()  # 3! permutations of weight one
    tensor(6.)

    :param log_matrix: log weights, shape (..., n, n) with n <= 20; ``-inf`` forbids a pair.
    :returns: shape (...); ``-inf``, with a gradient of zero, where no permutation is permitted.
    :raises ValueError: if the matrices are not square, or larger than 20 by 20.
    :raises NotImplementedError: in forward-mode differentiation.
    """
    require_reverse_mode(log_matrix)
    result: Tensor = _log_permanent(log_matrix)
    return result


def permutation_marginals(log_matrix: Tensor) -> Tensor:
    """Probability that a permutation drawn proportionally to its weight maps i to j.

    >>> import torch
    >>> from pyro_perm.permanent import permutation_marginals
    >>> permutation_marginals(torch.tensor([[0.0, 0.0], [0.0, 3.0]]).log1p())
    tensor([[0.8000, 0.2000],
            [0.2000, 0.8000]])

    :param log_matrix: log weights, shape (..., n, n) with n <= 20; ``-inf`` forbids a pair.
    :returns: doubly stochastic matrices, shape (..., n, n), without gradient; zero where no
        permutation is permitted.
    :raises ValueError: if the matrices are not square, or larger than 20 by 20.
    """
    _check_size(log_matrix)
    return _marginals(log_matrix.detach())


def _marginals(log_matrix: Tensor) -> Tensor:
    return forward_backward(log_matrix.double())[1].to(log_matrix.dtype)


# An operator, so that torch.jit.trace records one node and not the sizes of its example.
@torch.library.custom_op(
    "pyro_perm::log_permanent", mutates_args=(), schema="(Tensor log_matrix) -> Tensor"
)
def _log_permanent(log_matrix: Tensor) -> Tensor:
    _check_size(log_matrix)
    tables = _subset_tables(log_matrix.shape[-1], log_matrix.device)
    return _prefix_sums(log_matrix.double(), tables)[-1][..., 0].to(log_matrix.dtype)


def _save_matrix(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad_output: Tensor) -> Tensor:
    (log_matrix,) = ctx.saved_tensors
    if torch.is_grad_enabled() and bool((log_matrix == -torch.inf).any()):
        raise ValueError("the log-permanent has second derivatives only where no entry is -inf")
    return grad_output[..., None, None] * _marginals(log_matrix)


_log_permanent.register_autograd(_gradient, setup_context=_save_matrix)


def _check_size(log_matrix: Tensor) -> None:
    check_square(log_matrix)
    if log_matrix.shape[-1] > MAX_SIZE:
        raise ValueError(
            f"the exact permanent is limited to {MAX_SIZE} rows (time and memory grow as n 2^n), "
            f"got {log_matrix.shape[-1]}; use log_bethe_permanent"
        )


def _subset_tables(size: int, device: torch.device) -> _Tables:
    """Those of :func:`_build_tables`, remembered where they are small."""
    remembered = size <= _LARGEST_REMEMBERED
    return _remembered_tables(size, device) if remembered else _build_tables(size, device)


@cache
def _remembered_tables(size: int, device: torch.device) -> _Tables:
    return _build_tables(size, device)


def _build_tables(size: int, device: torch.device) -> _Tables:
    """Members and parents of the k-subsets S of the columns, for k = 1..size.

    Subsets come in ascending binary order. The parents of S are the ranks, among the
    (k-1)-subsets, of S without each of its members; both have shape (k, number of S).
    """
    subsets = torch.arange(2**size, device=device)
    contains = subsets[:, None].bitwise_right_shift(torch.arange(size, device=device)) % 2 == 1
    cardinality = contains.sum(-1)
    rank = torch.empty_like(subsets)
    rank[0] = 0
    tables = []
    for k in range(1, size + 1):
        layer = subsets[cardinality == k]
        members = contains[layer].nonzero()[:, 1].view(-1, k).T.contiguous()
        tables.append((members, rank[layer - 2**members]))
        rank[layer] = torch.arange(len(layer), device=device)
    return tables


def _prefix_sums(weights: Tensor, tables: _Tables) -> list[Tensor]:
    """Log F, one tensor for each cardinality of S, of shape (..., number of S)."""
    layers = [weights.new_zeros(*weights.shape[:-2], 1)]
    for row, table in enumerate(tables):
        layers.append(_extensions(weights[..., row, :], layers[-1], table).logsumexp(-2))
    return layers


def _extensions(log_row: Tensor, layer: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Log F(S without j) + L_j for every member j of every S, shape (..., k, number of S)."""
    members, parents = table
    terms = layer.index_select(-1, parents.flatten()) + log_row.index_select(-1, members.flatten())
    return terms.view(layer.shape[:-1] + members.shape)


def forward_backward(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Log-permanent and marginals by recursion from both ends.

    :param weights: log weights, float64, shape (..., n, n).
    """
    tables = _subset_tables(weights.shape[-1], weights.device)
    prefixes = _prefix_sums(weights, tables)
    # Rows taken from the last one up and complementary subsets turn F into B; in ascending
    # binary order the complements come in exactly the reverse order.
    suffixes = [layer.flip(-1) for layer in reversed(_prefix_sums(weights.flip(-2), tables))]
    total = prefixes[-1]
    total = total.masked_fill(total == -torch.inf, 0.0)
    marginals = torch.zeros_like(weights)
    for row, table in enumerate(tables):
        log_joint = _extensions(weights[..., row, :], prefixes[row], table)
        log_joint += (suffixes[row + 1] - total)[..., None, :]
        members, _ = table
        marginals[..., row, :].index_add_(-1, members.flatten(), log_joint.exp().flatten(-2))
    return prefixes[-1][..., 0], marginals
