"""The shape check shared by the functions of this package."""

from torch import Tensor


def check_square(log_matrix: Tensor) -> None:
    """Refuse anything but floating-point matrices of shape (..., n, n).

    :param log_matrix: the matrix of log weights given by the caller.
    :raises ValueError: if the last two dimensions differ or the entries are not floats.
    """
    if log_matrix.dim() < 2 or log_matrix.shape[-1] != log_matrix.shape[-2]:
        shape = tuple(log_matrix.shape)
        raise ValueError(f"expected log weights of shape (..., n, n), got shape {shape}")
    if not log_matrix.is_floating_point():
        raise ValueError(f"expected floating-point log weights, got {log_matrix.dtype}")
