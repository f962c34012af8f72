r"""Which units may overlap, judged from the parameters alone.

Sampled unit ``j`` fits the factor of unit ``i`` worse than its own by ``KL(q_j || q_i)`` nats on
average, with a standard deviation of about ``sqrt(2 KL)``. For two Normals of equal scale the KL
is half the squared distance of their means in units of the scale; its root serves as a distance
here. A pair further apart than ``_SAFE`` has no share in the permanent.

Distances are computed once, ``O(n^2 d)``, and hold until the parameters have moved so far that a
pair might have come within ``_SAFE``; checking that is ``O(n d)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import scipy
import torch
from numpy import flatnonzero, intp, ones, stack, unique
from numpy.typing import NDArray
from torch import Tensor

from pyro_perm.symmetry.actions.orbits import Orbits

# A swap at this distance costs 64 nats with a standard deviation of 11: below 5 in one of 10^7.
_SAFE = 8.0
_MARGIN = 1.0
# Below this many multiplications, computing all pairs costs less than asking which matter.
_WORTHWHILE = 500_000


class Screen:
    """Remembers which units of a group may overlap while the parameters stay near a reference.

    :param orbits: the images of units: one may overlap with an image of another.
    """

    def __init__(self, orbits: Orbits) -> None:
        self._orbits = orbits
        self._reference: _Reference | None = None
        self._clusters: list[Tensor | None] = []

    def clusters(self, locs: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor | None]:
        """Sets of units that may overlap with each other, and with no unit outside the set.

        :param locs: shapes ``(n, width)``; together they hold the entries of each unit.
        :param scales: same shapes.
        :returns: one tensor for each size of a set, shape ``(sets, size)``; units in none overlap
            with no other. None stands for the whole group, where screening is not worth its cost.
        """
        size, width = locs[0].shape[-2], sum(part.shape[-1] for part in locs)
        if size**2 * width < _WORTHWHILE:
            return [None]
        if self._reference is None or not self._reference.holds(locs, scales):
            self._refresh(torch.cat(tuple(locs), -1), torch.cat(tuple(scales), -1))
        return self._clusters

    def _refresh(self, locs: Tensor, scales: Tensor) -> None:
        twice_kl = self._orbits.divergences(locs, scales, locs, scales)
        distances = ((twice_kl + twice_kl.mT) / 2).clamp_min(0.0).sqrt()
        near = distances < _SAFE + _MARGIN
        self._reference = _Reference(locs, scales, distances.masked_fill(near, torch.inf))
        self._clusters = [*_components(near)]


class _Reference:
    """Parameters at which no two units of different sets are nearer than a distance."""

    def __init__(self, locs: Tensor, scales: Tensor, distances: Tensor) -> None:
        self.minus_locs = -locs
        self.precision = scales.reciprocal()
        self.nearest_apart = distances.min().item()
        # Allocating tensors of this size anew at every step would cost more than the arithmetic.
        self.scratch = torch.empty_like(locs)

    def holds(self, locs: Sequence[Tensor], scales: Sequence[Tensor]) -> bool:
        """Whether units of different sets are still further apart than ``_SAFE``."""
        if not self._fits(locs):
            return False
        relative = torch.cat(tuple(locs), -1, out=self.scratch)
        relative.add_(self.minus_locs).mul_(self.precision)
        farthest = torch.linalg.vector_norm(relative, dim=-1).max()
        ratios = torch.cat(tuple(scales), -1, out=self.scratch).mul_(self.precision).aminmax()
        # One wait for the device, and arithmetic on numbers.
        moved, smallest, largest = torch.stack((farthest, *ratios)).tolist()
        if not smallest > 0:
            return False
        rescaled: float = max(largest, 1 / smallest)
        return bool((self.nearest_apart - 2 * moved) / rescaled**2 > _SAFE)

    def _fits(self, locs: Sequence[Tensor]) -> bool:
        """Whether these are parameters of the same layer, where it was and in its precision."""
        shape = (locs[0].shape[0], sum(part.shape[-1] for part in locs))
        like = self.scratch
        return (shape, locs[0].dtype, locs[0].device) == (
            tuple(like.shape),
            like.dtype,
            like.device,
        )


def _components(near: Tensor) -> list[Tensor]:
    """Connected components of at least two units, one tensor ``(sets, size)`` for each size."""
    # SciPy takes ten times as long over a dense matrix, and before 1.12 reads 32-bit indices alone.
    ends = near.triu(1).nonzero().T.int().cpu().numpy()
    links = scipy.sparse.coo_array((ones(ends.shape[1]), tuple(ends)), shape=tuple(near.shape))
    _, labels = scipy.sparse.csgraph.connected_components(links, directed=False)
    by_size: dict[int, list[NDArray[intp]]] = {}
    names, counts = unique(labels, return_counts=True)
    for name, count in zip(names, counts, strict=True):
        if count > 1:
            by_size.setdefault(int(count), []).append(flatnonzero(labels == name))
    return [torch.from_numpy(stack(sets)).to(near.device) for sets in by_size.values()]
