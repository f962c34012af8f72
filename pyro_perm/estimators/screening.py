r"""Which units may overlap, judged from the parameters alone.

Sampled unit ``j`` fits the factor of unit ``i`` worse than its own by ``KL(q_j || q_i)`` nats on
average, with a standard deviation of about ``sqrt(2 KL)``. For two Normals of equal scale the KL
is half the squared distance of their means in units of the scale; its root serves as a distance
here. A pair further apart than ``_SAFE`` has no share in the permanent.

Distances are computed once, ``O(n^2 d)``, and hold until the parameters have moved so far that a
pair might have come within ``_SAFE``; checking that is ``O(n d)``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from numpy import flatnonzero, intp, stack, unique
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from torch import Tensor

# A swap at this distance costs 64 nats with a standard deviation of 11: below 5 in one of 10^7.
_SAFE = 8.0
_MARGIN = 1.0
# Below this many multiplications, computing all pairs costs less than asking which matter.
_WORTHWHILE = 2_000_000


class Screen:
    """Remembers which units of a group may overlap while the parameters stay near a reference."""

    def __init__(self) -> None:
        self._locs = self._scales = torch.empty(0)
        self._clusters: list[Tensor] = []
        self._nearest_apart = 0.0

    def clusters(self, locs: Tensor, scales: Tensor) -> list[Tensor]:
        """Sets of units that may overlap with each other, and with no unit outside the set.

        :param locs: shape ``(n, entries of a unit)``; with a batch, nothing is screened.
        :param scales: same shape.
        :returns: one tensor for each size of a set, shape ``(sets, size)``; units in none overlap
            with no other. A single set of all units where screening is not worth its cost.
        """
        size, entries = locs.shape[-2:]
        if locs.dim() > 2 or size**2 * entries < _WORTHWHILE:
            return [_all_units(size, locs.device)]
        if not self._still_holds(locs, scales):
            self._refresh(locs, scales)
        return self._clusters

    def _still_holds(self, locs: Tensor, scales: Tensor) -> bool:
        if self._locs.shape != locs.shape or self._locs.device != locs.device:
            return False
        moved = ((locs - self._locs) / self._scales).square().sum(-1).max().sqrt()
        smallest, largest = (scales / self._scales).aminmax()
        rescaled = torch.maximum(largest, 1 / smallest)
        return bool((self._nearest_apart - 2 * moved) / rescaled.square() > _SAFE)

    def _refresh(self, locs: Tensor, scales: Tensor) -> None:
        distances = _distances(locs, scales)
        near = distances < _SAFE + _MARGIN
        self._locs, self._scales = locs.clone(), scales.clone()
        self._nearest_apart = distances.masked_fill(near, torch.inf).min().item()
        self._clusters = _components(near)


@lru_cache
def _all_units(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device).unsqueeze(0)


def _distances(locs: Tensor, scales: Tensor) -> Tensor:
    """``sqrt(2 KL(q_j || q_i))``, made symmetric by the mean over both directions."""
    locs = locs - locs.mean(-2, keepdim=True)
    precision = scales.square().reciprocal()
    weighted = precision * locs
    squares = precision @ (scales.square() + locs.square()).mT - 2 * weighted @ locs.mT
    twice_kl = squares + (weighted * locs).sum(-1, keepdim=True) - locs.shape[-1]
    return ((twice_kl + twice_kl.mT) / 2).clamp_min(0.0).sqrt()


def _components(near: Tensor) -> list[Tensor]:
    """Connected components of at least two units, one tensor ``(sets, size)`` for each size."""
    _, labels = connected_components(near.cpu().numpy(), directed=False)
    by_size: dict[int, list[NDArray[intp]]] = {}
    names, counts = unique(labels, return_counts=True)
    for name, count in zip(names, counts, strict=True):
        if count > 1:
            by_size.setdefault(int(count), []).append(flatnonzero(labels == name))
    return [torch.from_numpy(stack(sets)).to(near.device) for sets in by_size.values()]
