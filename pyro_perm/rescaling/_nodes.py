"""The trapezoidal rule over the windows of many integrands at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._windows import Windows

_SMALLEST_RULE = 12
# Entries of a temporary that stays in a processor's cache.
_BLOCK = 50_000


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
    sums = NodeSums(
        torch.empty_like(windows.anchor), windows.anchor.new_empty(4, len(windows.anchor))
    )
    num_nodes, fewer = _SMALLEST_RULE, 0.0
    largest = float(windows.num_nodes.max())
    while fewer < largest:
        _sum_those(windows, fewer, num_nodes, sums)
        fewer, num_nodes = num_nodes, _next_rule(num_nodes)
    return sums


def _next_rule(num_nodes: int) -> int:
    """The sizes are 12, 16, 24, 32, 48 and so on."""
    return num_nodes * 4 // 3 if num_nodes % 3 == 0 else num_nodes * 3 // 2


def _sum_those(windows: Windows, fewer: float, num_nodes: int, sums: NodeSums) -> None:
    chosen = windows.num_nodes <= num_nodes
    if fewer:
        chosen &= windows.num_nodes > fewer
    where = chosen.nonzero().squeeze(-1)
    for some in where.split(max(_BLOCK // num_nodes, 1)):
        whole = len(some) == len(windows.anchor)
        exponent = windows.exponent if whole else windows.exponent.take(some)
        left, right = (x if whole else x[some] for x in (windows.left, windows.right))
        log_integral, means = _trapezoid(exponent, left, right, num_nodes)
        sums.log_integral[some] = log_integral
        sums.means[:, some] = means


def _trapezoid(
    exponent: Exponent, left: Tensor, right: Tensor, num_nodes: int
) -> tuple[Tensor, Tensor]:
    step = (right - left).div_(num_nodes - 1)
    numbers = torch.arange(num_nodes, dtype=left.dtype, device=left.device).unsqueeze(-1)
    t = torch.addcmul(left, numbers, step)
    z = torch.expm1(t)
    x = z + 1
    y = x.reciprocal()
    rise = exponent.rise_at(z, y - 1).add_(t, alpha=exponent.a)
    largest = rise.amax(0)
    weights = rise.sub_(largest).exp_()
    total = weights.sum(0)
    means = total.new_empty(4, len(total))
    torch.mul(weights, x, out=z)
    torch.sum(z, 0, out=means[1])
    torch.sum(z.mul_(x), 0, out=means[0])
    torch.mul(weights, y, out=z)
    torch.sum(z, 0, out=means[3])
    torch.sum(z.mul_(y), 0, out=means[2])
    return (total * step).log_().add_(largest), means.div_(total)
