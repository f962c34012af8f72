"""The trapezoidal rule over the windows of many integrands at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._windows import Windows

_SMALLEST_RULE = 16
# Entries of a temporary that stays in a processor's cache.
_BLOCK = 20_000


class NodeSums(NamedTuple):
    """Sums over the nodes of each window, relative to its anchor.

    Attributes:
        log_integral: its share of the integral, relative to the integrand at the anchor.
        means: means of ``e^{2t}``, ``e^t``, ``e^{-2t}``, ``e^{-t}``, shape ``(4, windows)``.
    """

    log_integral: Tensor
    means: Tensor


def sum_nodes(windows: Windows) -> NodeSums:
    """Sum each window over as many nodes as it needs, those of like numbers at once."""
    largest = float(windows.num_nodes.max())
    if not math.isfinite(largest):
        # Not a number where the integrand has no window; for the others nobody will ask.
        return NodeSums(windows.num_nodes * 0, windows.num_nodes.expand(4, -1) * 0)
    num_nodes, fewer = _SMALLEST_RULE, 0
    if largest <= num_nodes and len(windows.anchor) * num_nodes <= _BLOCK:
        return _trapezoid(windows.exponent, windows.left, windows.right, num_nodes)
    size = len(windows.anchor)
    sums = NodeSums(torch.empty_like(windows.anchor), windows.anchor.new_empty(4, size))
    while fewer < largest:
        chosen = (windows.num_nodes > fewer).logical_and_(windows.num_nodes <= num_nodes)
        for some in chosen.nonzero().squeeze(-1).split(max(_BLOCK // num_nodes, 1)):
            exponent = windows.exponent.take(some)
            part = _trapezoid(exponent, windows.left[some], windows.right[some], num_nodes)
            sums.log_integral[some] = part.log_integral
            sums.means[:, some] = part.means
        fewer, num_nodes = num_nodes, _next_rule(num_nodes)
    return sums


def _next_rule(num_nodes: int) -> int:
    """The rules have 16, 24, 32, 48 nodes and so on."""
    return num_nodes * 4 // 3 if num_nodes % 3 == 0 else num_nodes * 3 // 2


def _trapezoid(exponent: Exponent, left: Tensor, right: Tensor, num_nodes: int) -> NodeSums:
    step = (right - left).div_(num_nodes - 1)
    z = _falling(torch.stack([right, -left]), step, num_nodes)
    z[0] = z[0].flip(0)
    numbers = torch.arange(num_nodes, dtype=left.dtype, device=left.device).unsqueeze(-1)
    rise = exponent.rise_at(z).addcmul_(numbers, step, value=exponent.a)
    largest = rise.amax(0)
    weights = rise.sub_(largest).exp_()
    total = weights.sum(0)
    means = total.new_empty(2, 2, len(total))
    x = z.add_(1)
    product = weights * x
    torch.sum(product, 1, out=means[:, 1])
    torch.sum(product.mul_(x), 1, out=means[:, 0])
    log_integral = (total * step).log_().add_(largest).add_(left, alpha=exponent.a)
    return NodeSums(log_integral, means.div_(total).flatten(0, 1))


def _falling(first: Tensor, step: Tensor, num: int) -> Tensor:
    """``expm1(first - k step)`` for ``k < num``, by doubling what is known.

    Downwards, for upwards rounding errors would grow.

    :param first: shape ``(2, n)``.
    :param step: shape ``(n,)``.
    :returns: shape ``(2, num, n)``.
    """
    values = first.new_empty(2, num, len(step))
    torch.expm1(first, out=values[:, 0])
    known = 1
    while known < num:
        more = min(known, num - known)
        ahead = -known * step
        after = values[:, known : known + more]
        torch.addcmul(ahead.expm1(), ahead.exp(), values[:, :more], out=after)
        known += more
    return values
