r"""Belief propagation for the permanent, in the linear and in the logarithmic domain.

Both domains run the same sweeps (see :mod:`pyro_perm.permanent.bethe`) and differ in how
they divide and how they sum over all entries but one. That sum is where precision is lost:
where a pair is all but certain, :math:`\sum_{k \ne j} x_{ik} = \sum_k x_{ik} - x_{ij}`
cancels to a share :math:`1 - P_{ij}` of the total. The linear domain subtracts, and keeps
that share above rounding: as the free energy is stationary, an error of 1e-16 of the total is
one of 1e-16 of the result. The logarithmic domain sums anew without the largest entry, and
serves where exponentials underflow.

Matrices in single precision are swept in single precision first, whose errors of 1e-7 in each row
are far below what is asked of large ones, and again in double precision where exponentials
underflow.

Where two permutations tie, messages can alternate between two states for ever; the mean of
the logarithms of both, taken now and then, ends this at no cost elsewhere.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_FIRST_CHECK = 2  # Enough where all entries are about equal.
_SWEEPS_PER_CHECK = 4
_SWEEPS_PER_MEAN = 16
_LARGEST_LOG_ODDS = 1e6


class Beliefs(NamedTuple):
    """Where the messages of a batch of B matrices came to rest; shapes (B,) and (B, n, n)."""

    log_permanent: Tensor
    marginals: Tensor
    num_iterations: Tensor
    residual: Tensor
    faithful: Tensor


class _Domain(NamedTuple):
    total: Callable[[Tensor, int], Tensor]
    leave_one_out: Callable[[Tensor, int, Tensor], None]
    divide: Callable[..., Tensor]
    mean: Callable[[Tensor, Tensor], Tensor]
    log: Callable[[Tensor], Tensor]
    log_product: Callable[[Tensor, Tensor], Tensor]
    exp: Callable[[Tensor], Tensor]


def propagate(log_matrix: Tensor, max_iterations: int, tolerance: float) -> Beliefs:
    """Run belief propagation to convergence, in the linear domain wherever it is faithful.

    :param log_matrix: log weights in the precision that is wanted, shape (B, n, n).
    :param max_iterations: largest number of sweeps, at least one.
    :param tolerance: residual at which to stop.
    """
    log_rows = _finite(log_matrix.amax(-1, keepdim=True))
    scaled = log_matrix - log_rows
    log_columns = _finite(scaled.amax(-2, keepdim=True))
    single = log_matrix.dtype == torch.float32
    # In place, here and below: allocating large matrices would cost more than the arithmetic.
    weights = scaled.sub_(log_columns).exp_()
    beliefs = _sweep(_SINGLE if single else _LINEAR, weights, max_iterations, tolerance)
    if not bool(beliefs.faithful.all()):
        index = (~beliefs.faithful).nonzero().squeeze(-1)
        scaled = log_matrix[index] - log_rows[index] - log_columns[index]
        propagate_again = propagate if single else _propagate_logarithmic
        again = propagate_again(scaled.double(), max_iterations, tolerance)
        beliefs = Beliefs(
            *(
                old.index_copy(0, index, new.to(old.dtype))
                for old, new in zip(beliefs, again, strict=True)
            )
        )
    log_scale = log_rows.double().sum((-2, -1)) + log_columns.double().sum((-2, -1))
    return beliefs._replace(log_permanent=beliefs.log_permanent + log_scale)


def _propagate_logarithmic(scaled: Tensor, max_iterations: int, tolerance: float) -> Beliefs:
    """Logarithmic sweeps, recognizing the matrices without a permitted permutation."""
    forbidden = scaled == -torch.inf
    empty = forbidden.all(-1).any(-1) | forbidden.all(-2).any(-1)
    weights = scaled.masked_fill(empty[:, None, None], 0.0)
    beliefs = _sweep(_LOGARITHMIC, weights, max_iterations, tolerance)
    # The free energy then falls without bound, below the weight of any permutation.
    least_weight = weights.masked_fill(forbidden, 0.0).amin(-1).sum(-1)
    impossible = empty | (beliefs.log_permanent < least_weight - 1.0)
    return beliefs._replace(
        log_permanent=beliefs.log_permanent.masked_fill(impossible, -torch.inf),
        marginals=beliefs.marginals.masked_fill(impossible[:, None, None], 0.0),
        residual=beliefs.residual.masked_fill(impossible, 0.0),
    )


def _finite(log_scale: Tensor) -> Tensor:
    return log_scale.clamp_min(torch.finfo(log_scale.dtype).min)


def _sweep(domain: _Domain, weights: Tensor, max_iterations: int, tolerance: float) -> Beliefs:
    to_rows, to_columns = weights, torch.empty_like(weights)
    for iteration in range(1, max_iterations + 1):
        _pass_messages(domain, weights, to_rows, -1, to_columns)
        if iteration in (_FIRST_CHECK, max_iterations) or iteration % _SWEEPS_PER_CHECK == 0:
            marginals = _normalize(domain, to_rows, -1)
            changes = _normalize(domain, to_columns, -2).sub_(marginals).abs_()
            residual = changes.amax((-2, -1))
            if iteration == max_iterations or not bool((residual > tolerance).any()):
                break
        earlier = to_rows.clone() if iteration % _SWEEPS_PER_MEAN == 0 else None
        to_rows = torch.empty_like(weights) if iteration == 1 else to_rows
        _pass_messages(domain, weights, to_columns, -2, to_rows)
        if earlier is not None:
            to_rows = domain.mean(earlier, to_rows)
    row_totals, column_totals = domain.total(to_rows, -1), domain.total(to_columns, -2)
    log_rows, log_columns = domain.log(row_totals), domain.log(column_totals)
    complements = to_columns
    domain.leave_one_out(to_rows, -1, complements)
    domain.divide(complements, row_totals, out=complements)
    log_complements = domain.log_product(complements, marginals).double()
    log_totals = log_rows.double() + log_columns.double().mT
    log_permanent = log_totals.sum((-2, -1)) + log_complements.sum(-1)
    smallest = torch.finfo(weights.dtype).tiny / torch.finfo(weights.dtype).eps
    return Beliefs(
        log_permanent=log_permanent,
        marginals=marginals,
        num_iterations=torch.full_like(residual, iteration, dtype=torch.long),
        residual=residual,
        # An entry lost to underflow would have the marginal A_ij over both totals.
        faithful=(log_rows.amin((-2, -1)) + log_columns.amin((-2, -1)) > math.log(smallest))
        & log_permanent.isfinite(),
    )


def _pass_messages(
    domain: _Domain, weights: Tensor, incoming: Tensor, dim: int, outgoing: Tensor
) -> None:
    domain.leave_one_out(incoming, dim, outgoing)
    domain.divide(weights, outgoing, out=outgoing)


def _normalize(domain: _Domain, messages: Tensor, dim: int) -> Tensor:
    return domain.exp(domain.divide(messages, domain.total(messages, dim)))


def _sum(x: Tensor, dim: int) -> Tensor:
    return x.sum(dim, keepdim=True)


def _leave_one_out(x: Tensor, dim: int, out: Tensor) -> None:
    # Rounding must not leave less than nothing.
    torch.sub(_sum(x, dim), x, alpha=1 - torch.finfo(x.dtype).eps, out=out)


def _log_sum(x: Tensor, dim: int) -> Tensor:
    return x.logsumexp(dim, keepdim=True)


def _log_leave_one_out(x: Tensor, dim: int, out: Tensor) -> None:
    largest, index = x.max(dim, keepdim=True)
    rest = _log_sum(x.scatter(dim, index, -torch.inf), dim)
    total = torch.logaddexp(largest, rest)
    torch.add(total, torch.log1p(-torch.exp(x - total)), out=out)
    # The only entry of a row or column leaves nothing: large finite odds keep messages finite.
    out.scatter_(dim, index, rest.maximum(total - _LARGEST_LOG_ODDS))


def _geometric_mean(x: Tensor, y: Tensor) -> Tensor:
    return x.sqrt() * y.sqrt()


def _arithmetic_mean(x: Tensor, y: Tensor) -> Tensor:
    return (x + y) / 2


def _log_product(complements: Tensor, _: Tensor) -> Tensor:
    # What the entries leave of their sum vanishes for one of them at most: no underflow.
    return complements.prod(-1).log()


def _log_product_in_single_precision(complements: Tensor, marginals: Tensor) -> Tensor:
    # Rounding the complements of small marginals, all of them to the same side perhaps, would add
    # up; large ones are known only by their complements.
    batch, row, column = (marginals > 0.5).nonzero(as_tuple=True)
    log_large = complements[batch, row, column].log_()
    log_rest = torch.neg(marginals, out=complements)
    log_rest[batch, row, column] = 0.0
    log_products = log_rest.log1p_().sum(-1)
    log_products[batch, row] += log_large  # One in a row at most is larger than a half.
    return log_products


def _sum_of_logs(complements: Tensor, _: Tensor) -> Tensor:
    return complements.sum(-1)


def _identity(x: Tensor) -> Tensor:
    return x


_LINEAR = _Domain(
    _sum, _leave_one_out, torch.div, _geometric_mean, torch.log, _log_product, _identity
)
_SINGLE = _LINEAR._replace(log_product=_log_product_in_single_precision)
_LOGARITHMIC = _Domain(
    _log_sum, _log_leave_one_out, torch.sub, _arithmetic_mean, _identity, _sum_of_logs, torch.exp
)
