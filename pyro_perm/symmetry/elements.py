"""Signed permutations: every unit takes another's place, and may change its sign on the way.

They form the hyperoctahedral group ``B_n``, of order ``n! 2^n``. An element ``g`` is a tensor of
``n`` integers: ``g[i] = j`` makes unit ``i`` of the result unit ``j`` of the argument, and
``g[i] = ~j``, which is ``-1 - j``, makes it minus that unit. Without negative entries it is an
ordinary permutation, so that ``S_n`` is a subgroup with the same laws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def unit_of(element: Tensor) -> Tensor:
    """The units that an element takes, without their signs."""
    return torch.where(element < 0, ~element, element)


def sign_of(element: Tensor) -> Tensor:
    """The signs that an element gives, 1 or -1."""
    return torch.where(element < 0, -1, 1)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The element that acts like ``second``, then ``first``; batches broadcast."""
    first, second = torch.broadcast_tensors(first, second)
    return _flipped(second.gather(-1, unit_of(first)), first < 0)


def inverse(element: Tensor) -> Tensor:
    """The element that undoes another."""
    place = unit_of(element).argsort(-1)
    return _flipped(place, element.gather(-1, place) < 0)


def sample(
    shape: Sequence[int],
    size: int,
    *,
    signed: bool,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uniform elements of ``B_n``, or of ``S_n``, shape ``(*shape, size)``."""
    if shape:
        permutation = torch.rand(*shape, size, device=device, generator=generator).argsort(-1)
    else:  # Exact and quicker, but knows no batches.
        permutation = torch.randperm(size, device=device, generator=generator)
    if not signed:
        return permutation
    coin = torch.rand(*shape, size, device=device, generator=generator)
    return _flipped(permutation, coin < 0.5)


def generators(size: int, *, signed: bool) -> list[Tensor]:
    """A transposition, a cycle, and the flip of one unit: they generate the whole group."""
    identity = torch.arange(size)
    moves = [torch.cat([identity[:2].flip(0), identity[2:]]), identity.roll(1)]
    flip = torch.cat([~identity[:1], identity[1:]])
    return (moves if size > 1 else []) + ([flip] if signed else [])


def log_order(size: int, *, signed: bool) -> float:
    """``log n!``, or ``log n! 2^n`` with signs, in nats."""
    return math.lgamma(size + 1) + (size * math.log(2) if signed else 0.0)


def _flipped(element: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, ~element, element)
