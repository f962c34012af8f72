r"""The Bethe approximation of the permanent (Huang & Jebara 2009; Vontobel 2013).

Over doubly stochastic matrices P, the Bethe permanent maximizes

.. math:: \log \operatorname{perm}_B(A) = \max_P \sum_{ij}
          P_{ij} \log A_{ij} - P_{ij} \log P_{ij} + (1 - P_{ij}) \log (1 - P_{ij}),

a concave problem solved by belief propagation. The messages of rows to columns and back are

.. math:: a_{ij} = \frac{A_{ij}}{\sum_{k \ne j} x_{ik}}, \qquad
          x_{ij} = \frac{A_{ij}}{\sum_{k \ne i} a_{kj}},

and :math:`P_{ij} = x_{ij} / \sum_k x_{ik} = a_{ij} / \sum_k a_{kj}` where they come to rest.
There the Bethe free energy is stationary in every message,

.. math:: \log \operatorname{perm}_B(A) = \sum_i \log \sum_j x_{ij}
          + \sum_j \log \sum_i a_{ij} + \sum_{ij} \log (1 - P_{ij}),

so that its error is quadratic in theirs, and its derivative in :math:`\log A_{ij}` is
:math:`P_{ij}`. Where one permutation prevails, P is that permutation exactly and the odds
grow geometrically without bound; close to this transition convergence is slow.

The bounds are :math:`\operatorname{perm}_B \le \operatorname{perm} \le 2^{n/2}
\operatorname{perm}_B` (Gurvits 2011; Anari & Rezaei 2019).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_perm.permanent._derivatives import require_first_derivative, require_reverse_mode
from pyro_perm.permanent._propagation import propagate
from pyro_perm.permanent._shapes import check_square


@dataclass(frozen=True)
class BethePermanent:
    """Result of belief propagation for a batch of permanents.

    :param log_permanent: log Bethe permanent in nats, shape (...), with gradient.
    :param marginals: approximate probability that row i goes with column j, shape (..., n, n),
        without gradient. Rows sum to one, columns within the residual.
    :param num_iterations: sweeps over rows and columns, shape (...).
    :param residual: largest difference between the marginals seen from the rows and from the
        columns, shape (...).
    :param converged: whether the residual is within the tolerance, shape (...).
    """

    log_permanent: Tensor
    marginals: Tensor
    num_iterations: Tensor
    residual: Tensor
    converged: Tensor


def bethe_permanent(
    log_matrix: Tensor, *, max_iterations: int = 200, tolerance: float = 1e-6
) -> BethePermanent:
    """Bethe permanent and marginals of ``exp(log_matrix)``.

    Computed in float64, until every matrix of the batch has converged; also under
    ``torch.jit.trace``, which records the propagation as one operator.

    >>> import torch
    >>> from pyro_perm.permanent import bethe_permanent
    >>> result = bethe_permanent(torch.zeros(3, 3))
    >>> result.marginals
    tensor([[0.3333, 0.3333, 0.3333],
            [0.3333, 0.3333, 0.3333],
            [0.3333, 0.3333, 0.3333]])
    >>> result.converged
    tensor(True)

    :param log_matrix: log weights, shape (..., n, n); ``-inf`` forbids a pair.
    :param max_iterations: largest number of sweeps over rows and columns.
    :param tolerance: largest accepted difference between row and column marginals. The error
        of ``log_permanent`` is of the order of its square, at worst of its own order.
    :returns: the result; look at ``converged``. Where no permutation is permitted the
        log-permanent is ``-inf`` and the marginals are zero.
    :raises ValueError: if the matrices are not square, or ``max_iterations`` is below one.
    :raises NotImplementedError: in forward-mode differentiation.
    """
    require_reverse_mode(log_matrix)
    log_permanent, marginals, num_iterations, residual = _bethe(
        log_matrix, max_iterations, tolerance
    )
    residual = residual.detach()
    return BethePermanent(
        log_permanent, marginals.detach(), num_iterations, residual, residual <= tolerance
    )


def log_bethe_permanent(
    log_matrix: Tensor, *, max_iterations: int = 200, tolerance: float = 1e-6
) -> Tensor:
    """Log Bethe permanent of ``exp(log_matrix)`` in nats, differentiable once.

    The gradient is that of the envelope theorem: the marginals of :func:`bethe_permanent`.

    >>> import torch
    >>> from pyro_perm.permanent import log_bethe_permanent
    >>> log_bethe_permanent(torch.zeros(20, 20))  # below log 20! = 42.34
    tensor(40.4232)

    :param log_matrix: log weights, shape (..., n, n); ``-inf`` forbids a pair.
    :param max_iterations: largest number of sweeps over rows and columns.
    :param tolerance: largest accepted difference between row and column marginals.
    :returns: shape (...).
    :raises ValueError: if the matrices are not square, or ``max_iterations`` is below one.
    """
    return bethe_permanent(
        log_matrix, max_iterations=max_iterations, tolerance=tolerance
    ).log_permanent


# An operator, so that torch.jit.trace records one node and not the sweeps of its example.
@torch.library.custom_op(
    "pyro_perm::bethe",
    mutates_args=(),
    schema="(Tensor log_matrix, int max_iterations, float tolerance)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _bethe(
    log_matrix: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log Bethe permanent, marginals, number of sweeps, residual."""
    check_square(log_matrix)
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    size, batch_shape = log_matrix.shape[-1], log_matrix.shape[:-2]
    weights = log_matrix.double().reshape(-1, size, size)
    beliefs = propagate(weights, max_iterations, tolerance)
    return (
        beliefs.log_permanent.to(log_matrix.dtype).reshape(batch_shape),
        beliefs.marginals.to(log_matrix.dtype).reshape(log_matrix.shape),
        beliefs.num_iterations.reshape(batch_shape),
        beliefs.residual.to(log_matrix.dtype).reshape(batch_shape),
    )


def _save_marginals(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1])


def _envelope_gradient(
    ctx: Any, grad_log_permanent: Tensor, *grad_others: Tensor
) -> tuple[Tensor, None, None]:
    require_first_derivative("the Bethe permanent")
    (marginals,) = ctx.saved_tensors
    return grad_log_permanent[..., None, None] * marginals, None, None


_bethe.register_autograd(_envelope_gradient, setup_context=_save_marginals)
