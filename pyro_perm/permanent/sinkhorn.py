r"""Scaling a positive matrix to a doubly stochastic one (Sinkhorn 1964; Knopp 1967).

Every matrix with a permitted permutation through each permitted entry has a unique form

.. math:: Q_{ij} = e^{r_i} \, e^{L_{ij}} \, e^{c_j}, \qquad
          \sum_j Q_{ij} = \sum_i Q_{ij} = 1,

reached by normalizing rows and columns in turn. Scaling moves the permanent by a known
amount, :math:`\log \operatorname{perm}(e^L) = \log \operatorname{perm}(Q) - \sum_i r_i -
\sum_j c_j`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_perm.permanent._shapes import check_square


@dataclass(frozen=True)
class Sinkhorn:
    """A scaled matrix, ``log_scaled = log_matrix + log_rows[:, None] + log_columns[None, :]``.

    :param log_scaled: log of the scaled matrix Q, shape (..., n, n).
    :param log_rows: log row scalings r, shape (..., n).
    :param log_columns: log column scalings c, shape (..., n).
    :param residual: largest distance of a row or column sum from one, shape (...).
    :param num_iterations: how often rows and columns were normalized.
    :param converged: whether the residual is within the tolerance, shape (...).
    """

    log_scaled: Tensor
    log_rows: Tensor
    log_columns: Tensor
    residual: Tensor
    num_iterations: int
    converged: Tensor


def sinkhorn(log_matrix: Tensor, *, max_iterations: int = 200, tolerance: float = 1e-6) -> Sinkhorn:
    """Scale ``exp(log_matrix)`` towards a doubly stochastic matrix, in the log domain.

    The iterations run in float64 and stop when every matrix of the batch has converged.

    >>> import torch
    >>> from pyro_perm.permanent import sinkhorn
    >>> sinkhorn(torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log()).log_scaled.exp()
    tensor([[0.6667, 0.3333],
            [0.3333, 0.6667]])

    :param log_matrix: log weights, shape (..., n, n); ``-inf`` forbids a pair.
    :param max_iterations: largest number of row and column normalizations.
    :param tolerance: largest accepted distance of a row or column sum from one.
    :returns: the scaled matrices; an empty row or column keeps the residual at one.
    :raises ValueError: if the matrices are not square.
    """
    check_square(log_matrix)
    weights = log_matrix.double()
    log_rows = torch.zeros_like(weights[..., :1])
    log_columns = torch.zeros_like(weights[..., :1, :])
    log_scaled, residual, num_iterations = weights, _residual(weights), 0
    while num_iterations < max_iterations and bool((residual > tolerance).any()):
        log_rows = -_log_sums(weights + log_columns, -1)
        log_columns = -_log_sums(weights + log_rows, -2)
        log_scaled = weights + log_rows + log_columns
        residual = _residual(log_scaled)
        num_iterations += 1
    return Sinkhorn(
        log_scaled=log_scaled.to(log_matrix.dtype),
        log_rows=log_rows.squeeze(-1).to(log_matrix.dtype),
        log_columns=log_columns.squeeze(-2).to(log_matrix.dtype),
        residual=residual.to(log_matrix.dtype),
        num_iterations=num_iterations,
        converged=residual <= tolerance,
    )


def _log_sums(weights: Tensor, dim: int) -> Tensor:
    """Log sums along a dimension, zero for an empty row or column, which no scaling can fill."""
    sums = weights.logsumexp(dim, keepdim=True)
    return sums.masked_fill(sums == -torch.inf, 0.0)


def _residual(log_scaled: Tensor) -> Tensor:
    rows, columns = (log_scaled.logsumexp(dim).expm1().abs() for dim in (-1, -2))
    return torch.maximum(rows, columns).amax(-1)
