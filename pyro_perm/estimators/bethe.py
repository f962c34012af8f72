r"""The training default: a permanent a group, exact on small blocks and Bethe on large ones.

The log-permanent's derivative in ``L_ij`` is the marginal ``P_ij``, the probability that sampled unit
``j`` came from unit ``i`` (envelope theorem). So the gradient of ``log perm(exp L) - sum_i L_ii`` is
that of ``sum_ij R_ij L_ij`` with ``R = P - 1`` held constant, and since the rows of ``R`` sum to zero,

``sum_ij R_ij L_ij = -1/2 sum_i 1/s_i^2 ((R w^2)_i - 2 m_i (R w)_i)``.

Units that overlap with no other have ``R = 0`` and cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_perm.estimators.chain_rule import Term, lower_terms
from pyro_perm.estimators.density import FactorizedDensity, UnitLayout, Units, unit_pairs
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
        total = next(iter(density.values.values())).new_zeros(
            density.batch_shape, dtype=torch.float64
        )
        total = total - density.symmetry.log_order
        for term in lower_terms(density.symmetry):
            total = total + self._log_permanent(density, term)
        return total

    def _log_permanent(self, density: FactorizedDensity, term: Term) -> Tensor | float:
        """``log perm(exp L) - sum_i L_ii`` for one group."""
        if not term.sites:
            return math.lgamma(density.symmetry.groups[term.group] + 1)
        layout = UnitLayout.of(density.symmetry, *term)
        screen = self._screens.setdefault(term.group, Screen())
        tensors = [
            kind[site]
            for kind in (density.values, density.locs, density.scales)
            for site in term.sites
        ]
        result: Tensor = _LogPermanent.apply(layout, screen, *tensors)  # type: ignore[no-untyped-call]
        return result


class _LogPermanent(torch.autograd.Function):
    """``log perm(exp L) - sum_i L_ii`` of a group, from the tensors of its sites.

    ``torch.jit.trace`` records the whole as one Python operator, and so none of the decisions in it
    that depend on the data.
    """

    @staticmethod
    def forward(ctx: Any, layout: UnitLayout, screen: Screen, *tensors: Tensor) -> Tensor:
        units = Units(*map(layout.units, _by_kind(tensors)))
        total = units.values.new_zeros(units.values.shape[:-2], dtype=torch.float64)
        ctx.layout, ctx.units_shape, ctx.overlapping = layout, units.values.shape, []
        ctx.save_for_backward(*tensors)
        for clusters in screen.clusters(units.locs, units.scales):
            within = Units(*(tensor[..., clusters, :] for tensor in units))
            log_ratio, marginals = permanent_by_blocks(unit_pairs(within))
            total += log_ratio.sum(-1)
            excess = marginals - torch.eye(clusters.shape[-1]).to(marginals)
            if excess.any():
                ctx.overlapping.append((clusters, within, excess))
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if not ctx.overlapping:
            return (None,) * (2 + len(tensors))
        kinds = _by_kind(tensors)
        grads = [tensors[0].new_zeros(ctx.units_shape) for _ in kinds]
        for clusters, within, excess in ctx.overlapping:
            weights = excess * grad_output[..., None, None, None]
            for grad, part in zip(grads, _gradients(within, weights), strict=True):
                grad[..., clusters, :] = part.to(grad.dtype)
        sites = (ctx.layout.scatter(g, kind) for g, kind in zip(grads, kinds, strict=True))
        return None, None, *(grad for kind in sites for grad in kind)


def _gradients(units: Units, weights: Tensor) -> Units:
    """Gradients of ``sum_ij R_ij L_ij`` for weights whose rows sum to zero."""
    values, locs, scales = (tensor.double() for tensor in units)
    center = locs.mean(-2, keepdim=True)
    values, locs = values - center, locs - center
    precision = scales.square().reciprocal()
    mixed = weights @ values
    mixed_squares = weights @ values.square()
    return Units(
        values=weights.mT @ (precision * locs) - values * (weights.mT @ precision),
        locs=precision * mixed,
        scales=(mixed_squares - 2 * locs * mixed) * precision / scales,
    )


def _by_kind(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """Values, locs and scales of the sites."""
    num = len(tensors) // 3
    return tensors[:num], tensors[num : 2 * num], tensors[2 * num :]
