r"""``KL(N(m, s) || N(mu, sigma))``, summed over entries, with its gradient in closed form.

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
    """The divergence of all entries in nats, for :func:`torch.func.vmap` too.

    :param loc: of the variational factors, shape ``(*shape)``.
    :param scale: the same shape.
    :param prior_loc: what can be expanded to it; ``prior_scale`` likewise.
    :returns: a scalar.
    """
    distance = loc - prior_loc
    squares = torch.addcmul(distance * distance, scale, scale)
    quadratic = 0.5 * (squares / prior_scale.square()).sum()
    copies = loc.numel() / prior_scale.numel()
    return quadratic - scale.log().sum() + copies * prior_scale.log().sum() - 0.5 * loc.numel()


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
        distance = loc - prior_loc
        gradients: list[Tensor | None] = [None] * 4
        if of_loc:
            gradients[0] = distance * (precision * grad)
        if of_scale:
            gradients[1] = scale * (precision * grad) - grad / scale
        if of_prior_loc:
            gradients[2] = (-grad * distance * precision).sum_to_size(prior_loc.shape)
        if of_prior_scale:
            squares = (distance.square() + scale.square()) * precision
            gradients[3] = (grad * (1.0 - squares) / prior_scale).sum_to_size(prior_scale.shape)
        return tuple(gradients)
