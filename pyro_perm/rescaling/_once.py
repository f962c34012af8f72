"""Gradients that must not be differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def refuse_second_derivatives(*grads: Tensor) -> tuple[Tensor, ...]:
    """The gradients, with an error for whoever differentiates them.

    ``once_differentiable`` raises only where ``grad_output`` requires a gradient; elsewhere second
    derivatives would be zero in silence.
    """
    if not torch.is_grad_enabled():  # Nobody asked for a graph of the gradients.
        return grads
    trigger = grads[0].new_zeros((), requires_grad=True)
    refused: tuple[Tensor, ...] = _Refusal.apply(trigger, *grads)
    return refused


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trigger: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        raise RuntimeError(
            "integrals over scales can be differentiated once only; use an optimizer of first "
            "order, or torch.autograd.functional.jacobian of a gradient by finite differences"
        )
