"""x."""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._nodes import NodeSums, sum_nodes
from pyro_perm.rescaling._windows import Windows, find_windows


class OrbitIntegral(NamedTuple):
    log_integral: Tensor
    means: Tensor


@torch.no_grad()
def orbit_integral(A, B, C, D, a, tolerance=1e-8):
    exponent = Exponent(*(x.reshape(-1) for x in torch.broadcast_tensors(A, B, C, D)), float(a))
    balanced, origin = exponent.balanced()
    windows = find_windows(balanced, -math.log(tolerance))
    sums = sum_nodes(windows)
    anchor = windows.anchor
    value = sums.log_integral.add_(windows.exponent.value()).add_(anchor,alpha=exponent.a)
    if windows.pair is None:
        value = value.add_(origin, alpha=exponent.a)
        x = (anchor + origin).exp_()
        means = sums.means
        means[1] *= x
        means[0] *= x.square()
        y = x.reciprocal_()
        means[3] *= y
        means[2] *= y.square_()
    else:
        pair = windows.pair
        n = len(origin)
        top = torch.full_like(origin, -math.inf).scatter_reduce(0, pair, value, "amax")
        w = (value - top[pair]).exp()
        tot = torch.zeros_like(origin).index_add(0, pair, w)
        x = (anchor + origin[pair]).exp()
        f = torch.stack([x * x, x, 1 / (x * x), 1 / x])
        means = torch.zeros(4, n, dtype=w.dtype).index_add(1, pair, sums.means * f * w) / tot
        value = top + tot.log() + exponent.a * origin
    return OrbitIntegral(value.reshape(A.shape), means.reshape(4, *A.shape))
