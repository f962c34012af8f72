r"""The training default: a permanent a group, exact on small blocks and Bethe on large ones.

The log-permanent's derivative in ``L_ij`` is the marginal ``P_ij``, the probability that sampled
unit ``j`` came from unit ``i`` (envelope theorem). So the gradient of
``log perm(exp L) - sum_i L_ii`` is that of ``sum_ij R_ij L_ij`` with ``R = P - 1`` held constant,
and since the rows of ``R`` sum to zero,

``sum_ij R_ij L_ij = -1/2 sum_i 1/s_i^2 ((R w^2)_i - 2 m_i (R w)_i)``.

Units that overlap with no other have ``R = 0`` and cost nothing.

Where units flip their signs, ``L_ij`` is summed over the signs (see
:mod:`pyro_perm.density.factorized`). What that adds to its gradient is ``-2 S_ij dO_ij``, with
``S_ij`` the probability that unit ``j``, if it came from unit ``i``, came with its sign changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_perm.density.factorized import (
    FactorizedDensity,
    PairFactors,
    Units,
    centered,
    odd_pairs,
    pair_factors,
    unit_pairs,
)
from pyro_perm.estimators import _costs
from pyro_perm.estimators._screening import Screen
from pyro_perm.estimators._terms import Term, lower_terms
from pyro_perm.estimators.estimator import (
    Estimator,
    joint_draws,
    register_estimator,
    require_served,
)
from pyro_perm.permanent import log_permanent_by_blocks, permanent_by_blocks
from pyro_perm.permanent._derivatives import require_first_derivative
from pyro_perm.permanent._tracing import is_tracing
from pyro_perm.symmetry.unit_layout import UnitLayout, broadcast_shapes, joined

# Of belief propagation, with some five operations each, until it comes to rest.
_SWEEPS = 100


@register_estimator
@dataclass(frozen=True)
class Bethe(Estimator):
    """Tight, deterministic estimate of ``log q^G(w)`` with a dense gradient, for training.

    Coupled groups follow the chain rule, in the order of
    ``pyro_perm.estimators._terms.lower_terms``; each term is one permanent, exact on
    blocks of up to 10 overlapping units and the Bethe approximation (Huang & Jebara 2009; Vontobel
    2013) on larger ones. The Bethe permanent lies below the permanent, so ``I(g; w)`` is
    overestimated on a large block, by about ``1/2 log(2 pi n / e)`` nats where its units coincide:
    train with it, and report :func:`~pyro_perm.mutual_information`. Sites on a simplex are left
    out: ``I`` of the group's other sites is no larger.
    """

    _screens: dict[tuple[str, bool], Screen] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    def for_one_guide(self) -> Bethe:
        """An equal one without memory: what was far apart in another guide tells nothing here."""
        return Bethe()

    def serves(self, density: FactorizedDensity) -> str | None:
        """Base guides that draw their sites independently."""
        return joint_draws(density)

    def cost(self, density: FactorizedDensity) -> float:
        """A product of matrices for each group, and belief propagation where all units overlap."""
        sweeps = sum(_SWEEPS * size**2 for size in density.symmetry.groups.values())
        return _costs.unit_pairs(density, lower_terms(density.symmetry)) + sweeps

    def log_ratio(self, density: FactorizedDensity) -> Tensor:
        """Sum over the groups of ``log perm(exp L) - sum_i L_ii - log n!``."""
        require_served(self, density)
        symmetry = density.symmetry
        total: Tensor | float = -symmetry.log_order
        for term in lower_terms(symmetry):
            if term.sites:
                total = total + self._log_permanent(density, term)
            else:  # Nothing tells its permutations apart.
                total = total + symmetry.log_orders[term.group]
        return torch.as_tensor(total, dtype=torch.float64).expand(density.batch_shape)

    def _log_permanent(self, density: FactorizedDensity, term: Term) -> Tensor:
        """``log perm(exp L) - sum_i log q_i(w_i)`` for one group."""
        layout = UnitLayout.of(density.symmetry, *term)
        signed = layout.flips is not None
        screen = self._screens.setdefault((term.group, signed), Screen(layout.flips))
        tensors = [
            kind[site]
            for kind in (density.values, density.locs, density.scales)
            for site in term.sites
        ]
        result: Tensor
        if is_tracing():
            result = log_permanent_by_blocks(density.unit_pairs(*term))
        else:
            result = _LogPermanent.apply(layout, screen, *tensors)
        return result + density.log_flips(*term) if signed else result


class _LogPermanent(torch.autograd.Function):
    """``log perm(exp L) - sum_i L_ii`` of a group, from the tensors of its sites."""

    @staticmethod
    def forward(ctx: Any, layout: UnitLayout, screen: Screen, *tensors: Tensor) -> Tensor:
        values, locs, scales = map(layout.views, _by_kind(tensors))
        ctx.layout, ctx.overlaps = layout, []
        log_ratios = []
        shared = all(part.dim() == 2 for part in (*locs, *scales))
        for cluster in screen.clusters(locs, scales) if shared else [None]:
            units = Units(*(joined(kind, cluster) for kind in (values, locs, scales)))
            units = centered(units, layout.flips)
            factors = pair_factors(units)
            log_ratio, excess = permanent_by_blocks(unit_pairs(units, factors, layout.flips))
            log_ratios.append(log_ratio if cluster is None else log_ratio.sum(-1))
            if excess is not None:
                ctx.overlaps.append(_Overlap(units, factors, cluster, excess))
        if not log_ratios:
            batch = broadcast_shapes([part.shape[:-2] for part in values])
            return values[0].new_zeros(batch, dtype=torch.float64)
        return sum(log_ratios[1:], log_ratios[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        require_first_derivative("Bethe()")
        if not ctx.overlaps:
            return (None,) * len(ctx.needs_input_grad)
        grads = [overlap.gradients(grad_output, ctx.layout.flips) for overlap in ctx.overlaps]
        clusters = [overlap.cluster for overlap in ctx.overlaps]
        sites: list[Tensor] = []
        for units in zip(*grads, strict=True):
            sites += ctx.layout.sites_from(units, clusters)
        # Autograd casts gradients to the inputs' precision, and sums over what was broadcast.
        return None, None, *sites


class _Overlap(NamedTuple):
    """Units that overlap.

    Attributes:
        units: centered, shapes ``(*batch, n, width)`` or ``(*batch, *cluster, width)``.
        factors: those of their pairs.
        cluster: their numbers, shape ``(sets, size)``, or None for the whole group.
        excess: marginals minus the identity, shape ``(*batch, n, n)`` or
            ``(*batch, sets, size, size)``.
    """

    units: Units
    factors: PairFactors
    cluster: Tensor | None
    excess: Tensor

    def gradients(self, grad_output: Tensor, flips: Tensor | None) -> Units:
        """Gradients of the units, in their shapes."""
        grad_output = grad_output[(..., *[None] * (self.excess.dim() - grad_output.dim()))]
        weights = (self.excess * grad_output).to(self.units.values.dtype)
        grads = _gradients(self.units, self.factors, weights)
        if flips is None:
            return grads
        weights *= -2 * (-2 * odd_pairs(self.units, flips)).sigmoid()
        odd = _odd_gradients(self.units, weights, flips)
        return Units(*(grad + part for grad, part in zip(grads, odd, strict=True)))


def _gradients(units: Units, factors: PairFactors, weights: Tensor) -> Units:
    """Gradients of ``sum_ij R_ij L_ij`` for weights whose rows sum to zero."""
    values, locs, scales = units
    precision = factors.left.chunk(2, -1)[0]
    mixed_precision, mixed_weighted = (weights.mT @ factors.left).chunk(2, -1)
    mixed_squares, minus_twice_mixed = (weights @ factors.right).chunk(2, -1)
    # In place, since new tensors of this size would cost more than the arithmetic.
    for_values = mixed_weighted.addcmul_(values, mixed_precision, value=-1)
    for_scales = mixed_squares.addcmul_(locs, minus_twice_mixed).mul_(precision).div_(scales)
    for_locs = minus_twice_mixed.mul_(precision).mul_(-0.5)
    return Units(for_values, for_locs, for_scales)


def _odd_gradients(units: Units, weights: Tensor, flips: Tensor) -> Units:
    """Gradients of ``sum_ij T_ij O_ij``."""
    values, locs, scales = units
    precision = scales.square().reciprocal() * flips.to(scales)
    mixed = precision * (weights @ values)
    return Units(
        values=weights.mT @ (precision * locs), locs=mixed, scales=-2 * locs / scales * mixed
    )


def _by_kind(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """The sites' values, locs and scales."""
    num = len(tensors) // 3
    return tensors[:num], tensors[num : 2 * num], tensors[2 * num :]
