r"""The training default: a permanent a group, exact on small blocks and Bethe on large ones.

The log-permanent's derivative in ``L_ij`` is the marginal ``P_ij``, the probability that sampled
unit ``j`` came from unit ``i`` (envelope theorem). So the gradient of
``log perm(exp L) - sum_i L_ii`` is that of ``sum_ij R_ij L_ij`` with ``R = P - 1`` held constant,
whose rows sum to zero; the unit pairs know it in closed form (see
:mod:`pyro_perm.symmetry.actions`). Units that overlap with no other have ``R = 0``, and cost
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_perm.density.density import Density
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
from pyro_perm.permanent._sparse_blocks import rows_in_blocks
from pyro_perm.permanent._tracing import is_tracing
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.actions.orbits import UnitPairs, Units
from pyro_perm.symmetry.actions.permute import center
from pyro_perm.symmetry.axis import broadcast_shapes
from pyro_perm.symmetry.unit_layout import UnitLayout, joined

# Of belief propagation, with some five operations each, until it comes to rest.
_SWEEPS = 100


@register_estimator
@dataclass(frozen=True)
class Bethe(Estimator):
    """Tight, deterministic estimate of ``log q^G(w)`` with a dense gradient, for training.

    Coupled groups follow the chain rule, in the order of
    ``pyro_perm.estimators._terms.lower_terms``; each term is one permanent, exact on
    blocks of up to 10 overlapping units and the Bethe approximation (Huang & Jebara 2009; Vontobel
    2013) on larger ones, corrected for its bias of about ``1/2 log(2 pi n / e)`` nats. The gradient
    is that of the Bethe permanent, for the correction is nearly constant. The value is within some
    tenths of a nat of the truth, but on no side of it: train with it, and report
    :func:`~pyro_perm.mutual_information`. Sites on a simplex are left out: ``I`` of the group's
    other sites is no larger.
    """

    is_deterministic = True

    _screens: dict[tuple[SymmetryGroup, Term], Screen] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    def for_one_guide(self) -> Bethe:
        """An equal one without memory: what was far apart in another guide tells nothing here."""
        return Bethe()

    def serves(self, density: Density) -> str | None:
        """Base guides that draw their sites independently."""
        return joint_draws(density)

    def cost(self, density: Density) -> float:
        """A product of matrices for each group, and belief propagation where all units overlap."""
        sweeps = sum(_SWEEPS * size**2 for size in density.symmetry.groups.values())
        return _costs.unit_pairs(density, lower_terms(density.symmetry)) + sweeps

    def log_ratio(self, density: Density) -> Tensor:
        """Sum over the groups of ``log perm(exp L) - sum_i L_ii - log n!``."""
        require_served(self, density)
        symmetry = density.symmetry
        total: Tensor | float = -symmetry.log_compact_order
        for term in lower_terms(symmetry):
            if term.sites:
                total = total + self._log_sum(density, term)
            else:  # Nothing tells its permutations apart.
                total = total + symmetry.log_orders[term.group]
        if not isinstance(total, Tensor):
            device = density.device
            total = torch.tensor(total, dtype=torch.float64, device=device)
        return total.double().expand(density.batch_shape)

    def _log_sum(self, density: Density, term: Term) -> Tensor:
        """``log sum_g q(g . w) - log q(w)`` over one group and some of its sites.

        Less the prior's share ``log p_Q(w) - log p(w)`` where the group rescales.
        """
        factor = density.symmetry.factor(term.group)
        terms = [self._log_permanent(density, term)] if factor.permutes else []
        if factor.actions:
            terms.append(density.log_mean(*term))
        return reduce(torch.add, terms)

    def _log_permanent(self, density: Density, term: Term) -> Tensor:
        """``log perm(exp L) - sum_i L_ii``."""
        layout = UnitLayout.of(density.symmetry, *term)
        screen = self._screens.setdefault((density.symmetry, term), Screen(layout.orbits))
        tensors = [
            kind[site]
            for kind in (density.values, density.locs, density.scales)
            for site in term.sites
        ]
        if is_tracing():
            return log_permanent_by_blocks(density.unit_pairs(*term))
        log_permanent: Tensor = _LogPermanent.apply(layout, screen, *tensors)
        return log_permanent


class _LogPermanent(torch.autograd.Function):
    """``log perm(exp L) - sum_i L_ii`` of a group, from the tensors of its sites."""

    @staticmethod
    def forward(ctx: Any, layout: UnitLayout, screen: Screen, *tensors: Tensor) -> Tensor:
        values, locs, scales = map(layout.views, _by_kind(tensors))
        ctx.layout, ctx.overlaps = layout, []
        log_ratios = []
        shared = all(part.dim() == 2 for part in (*locs, *scales))
        for cluster in screen.clusters(locs, scales) if shared else [None]:
            pairs = _pairs(layout, (values, locs, scales), cluster)
            rows = rows_in_blocks(pairs.log_densities) if _is_one_set(cluster) else None
            if rows is not None:
                if not len(rows):
                    continue
                cluster = rows[None] if cluster is None else cluster[:, rows]
                pairs = _pairs(layout, (values, locs, scales), cluster)
            log_ratio, excess = permanent_by_blocks(pairs.log_densities)
            log_ratios.append(log_ratio if cluster is None else log_ratio.sum(-1))
            if excess is not None:
                ctx.overlaps.append(_Overlap(pairs, cluster, excess))
        if not log_ratios:
            batch = broadcast_shapes([part.shape[:-2] for part in values])
            return values[0].new_zeros(batch, dtype=torch.float64)
        return sum(log_ratios[1:], log_ratios[0])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        require_first_derivative("Bethe()")
        if not ctx.overlaps:
            return (None,) * len(ctx.needs_input_grad)
        grads = [overlap.gradients(grad_output) for overlap in ctx.overlaps]
        clusters = [overlap.cluster for overlap in ctx.overlaps]
        sites: list[Tensor] = []
        for units in zip(*grads, strict=True):
            sites += ctx.layout.sites_from(units, clusters)
        # Autograd casts gradients to the inputs' precision, and sums over what was broadcast.
        return None, None, *sites


class _Overlap(NamedTuple):
    """Units that overlap.

    Attributes:
        pairs: their pairs.
        cluster: their numbers, shape ``(sets, size)``, or None for the whole group.
        excess: marginals minus the identity, shape ``(*batch, n, n)`` or
            ``(*batch, sets, size, size)``.
    """

    pairs: UnitPairs
    cluster: Tensor | None
    excess: Tensor

    def gradients(self, grad_output: Tensor) -> Units:
        """Gradients of the units, ``(*batch, n, width)`` or ``(*batch, *cluster, width)``."""
        ones = (None,) * (self.excess.dim() - grad_output.dim())
        return self.pairs.gradients(self.excess * grad_output[(..., *ones)])


def _pairs(
    layout: UnitLayout, kinds: Sequence[Sequence[Tensor]], chosen: Tensor | None
) -> UnitPairs:
    """The pairs of some units, by default of all.

    :param kinds: their values, locs and scales, part by part.
    """
    units = Units(*(joined(kind, chosen) for kind in kinds))
    return layout.orbits.pairs(center(units, layout.orbits))


def _is_one_set(cluster: Tensor | None) -> bool:
    return cluster is None or len(cluster) == 1


def _by_kind(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """The sites' values, locs and scales."""
    num = len(tensors) // 3
    return tensors[:num], tensors[num : 2 * num], tensors[2 * num :]
