"""Gradients that must not be differentiated again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def refuse_second_derivatives(
    grads: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients, with an error for whoever differentiates them.

    ``once_differentiable`` raises only where ``grad_output`` requires a gradient; elsewhere second
    derivatives would be zero in silence.

    :param grads: computed without graph.
    :param inputs: what they are functions of.
    """
    if not torch.is_grad_enabled():  # Nobody asked for a graph of the gradients.
        return tuple(grads)
    refused: tuple[Tensor, ...] = _Refusal.apply(len(grads), *grads, *inputs)
    return refused


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, num: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in tensors[:num])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        raise RuntimeError(
            "integrals over the scales of units can be differentiated once only: use an optimizer "
            "of first order"
        )
