r"""Proposals over permutations, fitted from ``w`` and the parameters only.

One group draws from its matrix of unit pairs. Coupled groups draw one after the other in the order
of the chain rule; each sees the groups before it in place, and those after it on average, with the
marginals of mean field. How much the latter count, their ``strength``, is close to zero for the
chain rule's own factors (right where units overlap) and one for mean field (right where they are
apart). Strengthening the coupling step by step from uniform marginals leads mean field to the right
permutations wherever they can be told at all, or nearly so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.estimators import _costs
from pyro_perm.estimators._coupled_groups import (
    expected_pairs,
    marginals_at,
    mean_field,
    uniform_marginals,
)
from pyro_perm.estimators._terms import lower_terms
from pyro_perm.permanent.row_by_row import sample_rescaled
from pyro_perm.symmetry.separable import coupled_sites

_STRENGTHS = (0.3, 1.0)
_WEAKEST = 0.05
_SWEEPS = 30
_CAUTION = 5.0
_NUM_PILOT = 8
# Of mean field, until its marginals are those of belief propagation.
_COST_OF_MARGINALS = 100
# Drawing a permutation costs n^3: wide layers get fewer of them in certificates.
_MOST_PERMUTATIONS, _FEWEST_PERMUTATIONS, _ROWS_OF_PERMUTATIONS = 64, 4, 3200


@dataclass(frozen=True)
class Proposal:
    """A distribution over the group that is easy to draw from.

    Attributes:
        density: the density that the permutations are drawn for.
        marginals: group -> marginals of mean field, shape ``(*batch, n, n)``.
        strength: how much groups that are not drawn yet count, shape ``(*batch)``.
    """

    density: Density
    marginals: dict[str, Tensor]
    strength: Tensor

    def draw(
        self, num: int, given: dict[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draw from the group.

        :param num: number of elements.
        :param given: elements whose log-probability is wanted too, group -> ``(k, *batch, n)``.
        :returns: the given elements, then those drawn, group -> shape ``(k + num, *batch, n)``, and
            their log-probabilities in nats, shape ``(k + num, *batch)``.
        """
        drawn: dict[str, Tensor] = {}
        factors = []
        pending = dict(self.marginals)
        for group, _ in lower_terms(self.density.symmetry):
            here = marginals_at(self.density, drawn) if drawn else self.density
            pairs = expected_pairs(here, group, pending, self.strength)
            mine = None if given is None else given[group]
            pairs = pairs.expand(*here.batch_shape, *pairs.shape[-2:])
            if drawn:
                drawn[group], factor = _draw_one_each(pairs, mine)
            else:
                drawn[group], factor = sample_rescaled(pairs, num, mine)
            factors.append(factor)
            del pending[group]
        return drawn, torch.stack(factors).sum(0)


@torch.no_grad()
def fit_proposals(density: Density) -> list[Proposal]:
    """A weakly and a strongly coupled proposal, or a single one where no site is shared.

    They draw permutations, and nothing else that groups do to units.
    """
    marginals = uniform_marginals(density)
    if not coupled_sites(density.symmetry):
        return [Proposal(density, marginals, _constant(density, 1.0))]
    proposals, weakest = [], _WEAKEST
    for strength in _STRENGTHS:
        path = torch.logspace(math.log10(weakest), math.log10(strength), _SWEEPS, device="cpu")
        marginals = mean_field(density, marginals, path.tolist())
        proposals.append(Proposal(density, marginals, _constant(density, strength)))
        weakest = strength
    return proposals


@torch.no_grad()
def fit_proposal(density: Density) -> Proposal:
    """The proposal that makes ``log q^G(w)`` largest, judged by draws of its own."""
    proposals = fit_proposals(density)
    if len(proposals) == 1:
        return proposals[0]
    scores = []
    for proposal in proposals:
        permutations, log_prob = proposal.draw(_NUM_PILOT)
        scores.append(log_mean(density.log_ratio(permutations) - log_prob))
    return select(proposals, torch.stack(scores))


def select(proposals: Sequence[Proposal], scores: Tensor) -> Proposal:
    """Of a weakly and a strongly coupled proposal the better one, particle by particle.

    Whatever bound is then drawn remains one, since scores are functions of ``w`` and of draws that
    serve no other purpose. A wrong strong coupling misleads more than a wrong weak one, so it must
    win clearly. Nor may its score lie below zero: ``sum_g q(g w) / q(w)`` is at least one, so mean
    field has then settled on wrong permutations.

    :param scores: estimates of ``log sum_g q(g w) / q(w)``, shape ``(2, *batch)``.
    """
    weak, strong = scores
    best = ((strong > weak + _CAUTION) & (strong > -_CAUTION)).long()
    density = proposals[0].density

    def pick(tensors: Sequence[Tensor]) -> Tensor:
        index = best.reshape(1, *best.shape, *(1,) * (tensors[0].dim() - best.dim()))
        return torch.take_along_dim(torch.stack(list(tensors)), index, 0).squeeze(0)

    marginals = {g: pick([p.marginals[g] for p in proposals]) for g in proposals[0].marginals}
    return Proposal(density, marginals, pick([p.strength for p in proposals]))


def cost(density: Density, num: int) -> float:
    """Multiplications for fitting the proposals, and for draws from one of them."""
    pairs = _costs.all_unit_pairs(density)
    draw = pairs + _costs.row_by_row(density)
    if not coupled_sites(density.symmetry):
        return pairs + num * draw
    units = sum(size**2 for size in density.symmetry.groups.values())
    sweeps = len(_STRENGTHS) * _SWEEPS * (pairs + _COST_OF_MARGINALS * units)
    return sweeps + (len(_STRENGTHS) * _NUM_PILOT + num) * draw


def num_affordable(density: Density) -> int:
    """How many permutations a certificate draws for each ``w``."""
    num = _ROWS_OF_PERMUTATIONS // max(density.symmetry.groups.values())
    return max(_FEWEST_PERMUTATIONS, min(_MOST_PERMUTATIONS, num))


def _constant(density: Density, number: float) -> Tensor:
    return torch.full(density.batch_shape, number, dtype=torch.float64, device=density.device)


def identity(density: Density, num: int = 1) -> dict[str, Tensor]:
    """The true permutation, group -> shape ``(num, *batch, n)``."""
    return {
        group: torch.arange(n, device=density.device).expand(num, *density.batch_shape, n)
        for group, n in density.symmetry.groups.items()
    }


def log_mean(log_weights: Tensor) -> Tensor:
    """Log of the average over the first dimension."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _draw_one_each(pairs: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """One permutation from each matrix, the first of which are given."""
    num_given = 0 if given is None else len(given)
    parts = [sample_rescaled(pairs[num_given:], 1)]
    if given is not None:
        parts.insert(0, sample_rescaled(pairs[:num_given], 0, given.unsqueeze(0)))
    permutations, log_probs = zip(*parts, strict=True)
    return torch.cat(permutations, 1).squeeze(0), torch.cat(log_probs, 1).squeeze(0)
