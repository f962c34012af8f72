"""Derivatives that a permanent does not have are refused, not taken for zero."""

from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def require_reverse_mode(log_matrix: Tensor) -> None:
    """Refuse dual numbers, whose tangents PyTorch drops without a word at operators of our own.

    :raises NotImplementedError: in forward mode.
    """
    if unpack_dual(log_matrix).tangent is not None:
        raise NotImplementedError(
            "permanents have no forward-mode derivatives: use reverse mode, such as "
            "torch.autograd.grad or torch.autograd.functional.hessian"
        )
