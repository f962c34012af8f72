r"""The training default: a permanent a group, exact on small blocks and Bethe on large ones.

The log-permanent's derivative in ``L_ij`` is the marginal ``P_ij``, the probability that sampled
unit ``j`` came from unit ``i`` (envelope theorem). So the gradient of
``log perm(exp L) - sum_i L_ii`` is that of ``sum_ij R_ij L_ij`` with ``R = P - 1`` held constant,
and since the rows of ``R`` sum to zero,

``sum_ij R_ij L_ij = -1/2 sum_i 1/s_i^2 ((R w^2)_i - 2 m_i (R w)_i)``.

Units that overlap with no other have ``R = 0`` and cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_perm.estimators.chain_rule import Term, lower_terms
from pyro_perm.estimators.density import (
    FactorizedDensity,
    UnitLayout,
    Units,
    centered,
    unit_pairs,
)
from pyro_perm.estimators.estimator import Estimator
from pyro_perm.estimators.screening import Screen
from pyro_perm.permanent import permanent_by_blocks


@dataclass(frozen=True)
class Bethe(Estimator):
    """Tight, deterministic estimate of ``log q^G(w)`` with a dense gradient, for training.

    Coupled groups follow the chain rule, in the order of :func:`lower_terms`; each term is one
    permanent, exact on blocks of up to 10 overlapping units and the Bethe approximation (Huang &
    Jebara 2009; Vontobel 2013) on larger ones. The Bethe permanent lies below the permanent, so
    ``I(g; w)`` is overestimated on a large block, by about ``1/2 log(2 pi n / e)`` nats where its
    units coincide: train with it, and report :func:`~pyro_perm.mutual_information`.
    """

    _screens: dict[str, Screen] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    def log_ratio(self, density: FactorizedDensity) -> Tensor:
        """Sum over the groups of ``log perm(exp L) - sum_i L_ii - log n!``."""
        symmetry = density.symmetry
        total: Tensor | float = -symmetry.log_order
        for term in lower_terms(symmetry):
            if term.sites:
                total = total + self._log_permanent(density, term)
            else:  # Nothing tells its permutations apart.
                total = total + math.lgamma(symmetry.groups[term.group] + 1)
        return torch.as_tensor(total, dtype=torch.float64).expand(density.batch_shape)

    def _log_permanent(self, density: FactorizedDensity, term: Term) -> Tensor:
        """``log perm(exp L) - sum_i L_ii`` for one group."""
        layout = UnitLayout.of(density.symmetry, *term)
        screen = self._screens.setdefault(term.group, Screen())
        tensors = [
            kind[site]
            for kind in (density.values, density.locs, density.scales)
            for site in term.sites
        ]
        result: Tensor = _LogPermanent.apply(layout, screen, *tensors)
        return result


class _LogPermanent(torch.autograd.Function):
    """``log perm(exp L) - sum_i L_ii`` of a group, from the tensors of its sites.

    ``torch.jit.trace`` records the whole as one Python operator, and so none of the decisions in it
    that depend on the data.
    """

    @staticmethod
    def forward(ctx: Any, layout: UnitLayout, screen: Screen, *tensors: Tensor) -> Tensor:
        units = Units(*map(layout.units, _by_kind(tensors)))
        batch = units.values.shape[:-2]
        total = units.values.new_zeros(batch, dtype=torch.float64)
        ctx.layout, ctx.units, ctx.overlapping = layout, units, []
        ctx.shapes = [tensor.shape for tensor in tensors]
        for clusters in screen.clusters(units.locs, units.scales):
            within = _select(units, clusters)
            log_ratio, blocks = permanent_by_blocks(unit_pairs(within))
            total += log_ratio.reshape(*batch, len(clusters)).sum(-1)
            for matrix, rows, excess in blocks:
                particle, cluster = matrix // len(clusters), matrix % len(clusters)
                ctx.overlapping.append((particle, clusters[cluster.unsqueeze(-1), rows], excess))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.overlapping:
            return (None,) * (2 + len(ctx.shapes))
        flat = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in ctx.units]
        grads = [torch.zeros_like(tensor) for tensor in flat]
        for particle, rows, excess in ctx.overlapping:
            weights = excess * grad_output.flatten()[particle, None, None]
            # Parameters that all particles share have a batch of one.
            places = [(particle.clamp_max(len(t) - 1).unsqueeze(-1), rows) for t in flat]
            within = Units(*(tensor[place] for tensor, place in zip(flat, places, strict=True)))
            for grad, place, part in zip(grads, places, _gradients(within, weights), strict=True):
                grad.index_put_(place, part.to(grad.dtype), accumulate=True)
        sites = (
            ctx.layout.sites_from(grad.reshape(tensor.shape), shapes)
            for grad, tensor, shapes in zip(grads, ctx.units, _by_kind(ctx.shapes), strict=True)
        )
        return None, None, *(grad for kind in sites for grad in kind)


def _select(units: Units, clusters: Tensor) -> Units:
    """The units of each cluster, shapes ``(*batch, clusters, size, entries of a unit)``.

    A single cluster of all units goes without the dimension of the clusters.
    """
    if clusters.shape == (1, units.locs.shape[-2]):
        return units
    return Units(*(tensor[..., clusters, :] for tensor in units))


def _gradients(units: Units, weights: Tensor) -> Units:
    """Gradients of ``sum_ij R_ij L_ij`` for weights whose rows sum to zero."""
    values, locs, scales = centered(units)
    weights = weights.to(values.dtype)
    precision = scales.square().reciprocal()
    entries = values.shape[-1]
    # Two products instead of four.
    mixed, mixed_squares = (weights @ torch.cat([values, values.square()], -1)).split(entries, -1)
    weighted = weights.mT @ torch.cat([precision, precision * locs], -1)
    return Units(
        values=weighted[..., entries:] - values * weighted[..., :entries],
        locs=precision * mixed,
        scales=(mixed_squares - 2 * locs * mixed) * precision / scales,
    )


_Kind = TypeVar("_Kind")


def _by_kind(items: Sequence[_Kind]) -> tuple[Sequence[_Kind], ...]:
    """What belongs to the sites' values, locs and scales."""
    num = len(items) // 3
    return items[:num], items[num : 2 * num], items[2 * num :]
