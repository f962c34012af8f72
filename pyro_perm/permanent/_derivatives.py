"""Derivatives that a permanent does not have are refused, not taken for zero."""

import torch
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


def require_first_derivative(of: str) -> None:
    """Refuse to be differentiated again, in a backward pass that holds marginals fixed.

    PyTorch's ``once_differentiable`` does so only where the incoming gradient has a gradient.

    :param of: what is differentiated.
    :raises RuntimeError: in a backward pass with ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{of} has no second derivatives, as create_graph=True asks for, since its gradient "
            "holds the marginals fixed: take Exact() for small groups, or "
            "InfoNCE(num_permutations=32)"
        )
