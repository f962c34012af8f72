r"""``KL(N(m, s) || N(mu, sigma))``, entry by entry, with its gradient in closed form.

``KL = ((m - mu)^2 + s^2) / (2 sigma^2) - log(s / sigma) - 1/2``, so that

``dKL/dm = -dKL/dmu = (m - mu) / sigma^2``, ``dKL/ds = s / sigma^2 - 1/s`` and
``dKL/dsigma = 1/sigma - ((m - mu)^2 + s^2) / sigma^3``.

Autograd would keep and revisit a tensor for each operation; a step of a wide layer is made of such.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def normal_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """The divergence of each entry in nats, for :func:`torch.func.vmap` too.

    :param loc: of the variational factors, shape ``(*shape)``.
    :param scale: the same shape.
    :param prior_loc: what broadcasts with it; ``prior_scale`` likewise.
    :returns: the broadcast shape.
    """
    ratio = scale / prior_scale
    distance = (loc - prior_loc) / prior_scale
    return (distance * distance + ratio * ratio).mul(0.5).sub(0.5) - ratio.log()


def fused_normal_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """The same as one operation of autograd; not for ``vmap``."""
    divergence: Tensor = _NormalKL.apply(loc, scale, prior_loc, prior_scale)
    return divergence


class _NormalKL(torch.autograd.Function):
    # With a setup_context, which vmap asks for, each call would cost four times as much.
    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return normal_kl(*parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc, prior_scale = ctx.saved_tensors
        of_loc, of_scale, of_prior_loc, of_prior_scale = ctx.needs_input_grad
        precision = prior_scale.square().reciprocal()
        slope = (loc - prior_loc) * precision
        gradients: list[Tensor | None] = [None] * 4
        if of_loc:
            gradients[0] = (slope * grad).sum_to_size(loc.shape)
        if of_scale:
            per_scale = scale * precision - scale.reciprocal()
            gradients[1] = (per_scale * grad).sum_to_size(scale.shape)
        if of_prior_loc:
            gradients[2] = (-slope * grad).sum_to_size(prior_loc.shape)
        if of_prior_scale:
            squares = slope * (loc - prior_loc) + scale.square() * precision
            per_prior_scale = (1.0 - squares) / prior_scale
            gradients[3] = (per_prior_scale * grad).sum_to_size(prior_scale.shape)
        return tuple(gradients)
