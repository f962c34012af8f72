"""In which precision matrices of log weights are looked at."""

from torch import Tensor

_LARGE = 256


def in_sufficient_precision(log_matrix: Tensor) -> Tensor:
    """Large matrices as they are, others in double precision.

    Passes over all pairs are what large permanents cost, and each costs half in single precision.
    What rounding then changes is less than 1e-3 nats.

    :param log_matrix: shape ``(..., n, n)``.
    """
    return log_matrix if log_matrix.shape[-1] > _LARGE else log_matrix.double()
