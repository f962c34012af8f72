r"""What each method maximizes, and the certified bounds, for a stack of networks.

With ``w ~ q``, a factorized Gaussian, and the units' symmetry group,

* mean field: ``ELBO(q) = E_q[log p(D | w)] - KL(q || p)``, the divergence in closed form;
* InfoNCE and permutations: ``ELBO(q) + E_q[log q(w) - log q^G(w)]``, with the package's estimators;
* scales, and permutations with scales: the guide keeps its law of orbits ``Q`` and takes the
  prior's law along each, so that the bound is ``E_q[log p(D | w) + log p_Q(w) - log q_Q(w)]`` (see
  :mod:`pyro_perm.rescaling`), where ``log q_Q`` is a sum over units, or a permanent over their
  pairs.

Tests hold them against ``TraceSymmetrized_ELBO``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from stacked_network import Layout
from torch import Tensor

import pyro_perm as pp
from pyro_perm.density.density import gather_pairs
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.permanent import log_permanent, permanent_by_blocks
from pyro_perm.permanent.row_by_row import sample_rescaled
from pyro_perm.rescaling import Degrees, UnitEntries, log_orbit_mass, orbit_pairs

_CERTIFIED_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Posteriors:
    """Factorized Gaussians over networks, a draw from each, and their priors.

    Attributes:
        layout: of the networks.
        value: what was drawn, shape ``(runs, size)``; other shapes likewise.
        loc: means of the factors.
        scale: their standard deviations.
        prior_scale: those of the prior.
    """

    layout: Layout
    value: Tensor
    loc: Tensor
    scale: Tensor
    prior_scale: Tensor

    @property
    def density(self) -> FactorizedDensity:
        """As the package's estimators take it."""
        values, locs, scales = (
            {"units": self.layout.units(kind)} for kind in (self.value, self.loc, self.scale)
        )
        return FactorizedDensity(
            self.layout.group, values, locs, scales, torch.Size(self.value.shape[:-1])
        )

    @property
    def entries(self) -> UnitEntries:
        """The units of the draw and of the factors."""
        return UnitEntries(*map(self.layout.units, (self.value, self.loc, self.scale)))

    @property
    def prior_entries(self) -> UnitEntries:
        """The units of the draw and of the prior."""
        value, scale = self.layout.units(self.value), self.layout.units(self.prior_scale)
        return UnitEntries(value, torch.zeros_like(value), scale.expand_as(value))

    @property
    def degrees(self) -> Degrees:
        """What rescaling does to a unit: weights in and bias times c, weights out times 1/c."""
        return Degrees.of(self.layout.powers)

    def kl(self) -> Tensor:
        """``KL(q || p)`` of every entry, shape ``(runs, size)``."""
        ratio = self.scale / self.prior_scale
        distance = (self.loc - self.layout.prior_loc()) / self.prior_scale
        return 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()


Objective = Callable[[Posteriors], Tensor]


def mean_field(q: Posteriors) -> Tensor:
    """Minus ``KL(q || p)``: what an ELBO adds to the likelihood, shape ``(runs,)``."""
    return -q.kl().sum(-1)


def symmetrized(estimator: pp.Estimator) -> Objective:
    """``-KL(q || p) + I(g; w)``."""

    def objective(q: Posteriors) -> Tensor:
        return mean_field(q) - estimator.log_ratio(q.density)

    return objective


def scales(q: Posteriors) -> Tensor:
    """``log p_Q(w) - log q_Q(w)`` over rescalings, minus the divergence of what has no symmetry."""
    log_mass = log_orbit_mass(q.entries, q.degrees).sum(-1)
    return _log_prior_of_orbits(q) - _log_normals(q.entries) - log_mass - _kl_of_others(q)


def permutations_and_scales(q: Posteriors) -> Tensor:
    """The same over permutations, too."""
    log_q_orbit: Tensor = _LogQOrbit.apply(q.degrees, *q.entries)
    log_order = math.lgamma(q.layout.num_units + 1)
    return _log_prior_of_orbits(q) - log_q_orbit + log_order - _kl_of_others(q)


METHODS: dict[str, Callable[[], Objective]] = {
    "mean field": lambda: mean_field,
    "InfoNCE (K = 32)": lambda: symmetrized(pp.InfoNCE(32)),
    "permutations": lambda: symmetrized(pp.Bethe()),
    "scales": lambda: scales,
    "permutations and scales": lambda: permutations_and_scales,
}


@torch.no_grad()
def certified(q: Posteriors, num_permutations: int) -> dict[str, Tensor]:
    """What each kind of guide adds to the likelihood, certified: draws whose means bound it below.

    Permanents are importance-sampled with the true permutation among the samples, which bounds
    ``log q^G`` from above in expectation; integrals are exact to ``1e-9`` nats.

    :param num_permutations: beside the true one.
    :returns: kind of guide -> shape ``(runs,)``.
    """
    own = mean_field(q)
    permuted = pp.SampledChainRule(num_permutations).log_ratio(q.density)
    pairs = orbit_pairs(q.entries, q.degrees, tolerance=_CERTIFIED_TOLERANCE).log_densities
    of_orbits = _log_prior_of_orbits(q, _CERTIFIED_TOLERANCE) - _kl_of_others(q)
    rescaled = of_orbits - pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
    log_average = _log_permanent_from_above(pairs, num_permutations)
    log_average = log_average - math.lgamma(q.layout.num_units + 1)
    return {
        "mean field": own,
        "permutations": own - permuted,
        "scales": rescaled,
        "permutations and scales": rescaled - log_average,
    }


@torch.no_grad()
def exact(q: Posteriors) -> dict[str, Tensor]:
    """``log q~(w) / p(w)`` of each kind of guide, exactly, for few units.

    :returns: kind of guide -> shape ``(runs,)``, in nats.
    """
    log_order = math.lgamma(q.layout.num_units + 1)
    others = _log_normals_of_others(q)
    density, log_prior = _log_normals(q.entries), _log_normals(q.prior_entries)
    own = density - log_prior + others
    pairs = orbit_pairs(q.entries, q.degrees, tolerance=_CERTIFIED_TOLERANCE).log_densities
    of_orbits = others - _log_prior_of_orbits(q, _CERTIFIED_TOLERANCE)
    return {
        "mean field": own,
        "permutations": own + pp.Exact().log_ratio(q.density),
        "scales": of_orbits + pairs.diagonal(dim1=-2, dim2=-1).sum(-1),
        "permutations and scales": of_orbits + log_permanent(pairs) - log_order,
    }


def _log_permanent_from_above(pairs: Tensor, num_permutations: int) -> Tensor:
    """``log perm(exp L) - sum_i L_ii``, from above in expectation."""
    truth = torch.arange(pairs.shape[-1]).expand(1, *pairs.shape[:-1])
    drawn, log_prob = sample_rescaled(pairs, num_permutations, truth)
    log_weights = gather_pairs(pairs, drawn) - log_prob
    return log_weights.logsumexp(0) - math.log(num_permutations + 1)


def _log_prior_of_orbits(q: Posteriors, tolerance: float = 1e-5) -> Tensor:
    log_mass = log_orbit_mass(q.prior_entries, q.degrees, tolerance=tolerance)
    return _log_normals(q.prior_entries) + log_mass.sum(-1)


def _kl_of_others(q: Posteriors) -> Tensor:
    return q.kl()[..., -q.layout.num_others :].sum(-1)


def _log_normals_of_others(q: Posteriors) -> Tensor:
    """``log q / p`` of the entries without symmetry."""
    ours, priors = (
        torch.distributions.Normal(loc.double(), scale.double()).log_prob(q.value.double())
        for loc, scale in ((q.loc, q.scale), (q.layout.prior_loc(), q.prior_scale))
    )
    return (ours - priors)[..., -q.layout.num_others :].sum(-1)


def _log_normals(entries: UnitEntries) -> Tensor:
    values, locs, scales = (kind.double() for kind in entries)
    terms = -0.5 * ((values - locs) / scales).square() - scales.log()
    return (terms - 0.5 * math.log(2 * math.pi)).sum((-2, -1))


class _LogQOrbit(torch.autograd.Function):
    """``log perm(exp L)`` of the orbits' pairs, with the gradient of the envelope theorem."""

    @staticmethod
    def forward(ctx: Any, degrees: Degrees, *entries: Tensor) -> Tensor:
        pairs = orbit_pairs(UnitEntries(*entries), degrees)
        log_ratio, excess = permanent_by_blocks(pairs.log_densities)
        marginals = torch.eye(pairs.log_densities.shape[-1], dtype=torch.float64)
        ctx.pairs, ctx.dtype = pairs, entries[0].dtype
        ctx.marginals = marginals if excess is None else marginals + excess
        return log_ratio + pairs.log_densities.diagonal(dim1=-2, dim2=-1).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.marginals * grad_output[:, None, None]
        return None, *(kind.to(ctx.dtype) for kind in ctx.pairs.gradients(weights))
