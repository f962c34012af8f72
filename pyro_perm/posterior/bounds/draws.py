"""Draws of a guide, and what estimators bound on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import Bounds, Estimator

_PERMUTATIONS, _ENTRIES_AT_ONCE = 64, 2**23


class Draw(NamedTuple):
    """A draw of the base guide.

    Attributes:
        density: the base guide's density, with what was drawn, and without batch dimensions.
        elbo: what ``I(g; w)`` is added to, ``log p(D, w) - log q(w)`` or the like, in nats.
        weight: of ``I(g; w)`` in the sum.
    """

    density: Density
    elbo: float = 0.0
    weight: float = 1.0


def bounds_of_draws(estimator: Estimator, densities: Sequence[Density]) -> Bounds:
    """The estimator's integrands, draw by draw: shape ``(num,)`` on the CPU, or None.

    Of the finite part of the group: without the gain of scales.
    """
    parts = [estimator.bounds(chunk) for chunk in _chunks(densities)]
    lower, upper = map(_joined, zip(*parts, strict=True))
    scales = scale_gains(densities)
    return Bounds(*(None if side is None else side - scales for side in (lower, upper)))


def scale_gains(densities: Sequence[Density]) -> Tensor:
    """What rescaling units gains, draw by draw: shape ``(num,)`` on the CPU."""
    if not densities[0].symmetry.open_groups:
        return torch.zeros(len(densities), dtype=torch.float64, device="cpu")
    gains = _joined([torch.as_tensor(chunk.scale_gain) for chunk in _chunks(densities)])
    assert gains is not None
    return gains


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of independent values."""
    return values.std().item() / math.sqrt(len(values))


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    values = [torch.atleast_1d(part) for part in parts if part is not None]
    return torch.cat(values).cpu() if values else None


def _chunks(densities: Sequence[Density]) -> Iterable[Density]:
    first = densities[0]
    if not (first.factorizes and all(d.priors is first.priors for d in densities)):
        # Joint densities do not stack, nor do priors that depend on the draw.
        yield from densities
        return
    pairs = sum(n**2 for n in densities[0].symmetry.groups.values())
    at_once = max(1, _ENTRIES_AT_ONCE // (_PERMUTATIONS * pairs))
    for start in range(0, len(densities), at_once):
        yield _stack(densities[start : start + at_once])


def _stack(densities: Sequence[Density]) -> Density:
    """Draws as one batch; parameters that all of them share stay without batch dimension."""
    first = densities[0]

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        shared = all(tensor is tensors[0] or torch.equal(tensor, tensors[0]) for tensor in tensors)
        return tensors[0] if shared else torch.stack(list(tensors))

    return FactorizedDensity(
        symmetry=first.symmetry,
        values={s: torch.stack([d.values[s] for d in densities]) for s in first.values},
        locs={s: stacked([d.locs[s] for d in densities]) for s in first.locs},
        scales={s: stacked([d.scales[s] for d in densities]) for s in first.scales},
        batch_shape=torch.Size([len(densities)]),
        priors=first.priors,
    )
