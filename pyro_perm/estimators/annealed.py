r"""Bidirectional annealed importance sampling over permutations (Grosse, Ghahramani & Adams 2015).

From ``f_0``, in which the groups are independent, to ``f_1(g) = q(g w) / q(w)`` run the
unnormalized distributions ``f_t = f_0^(1-t) f_1^t``. A chain that starts in ``f_0`` and moves by
kernels that leave each ``f_t`` invariant collects weights whose average is unbiased for
``sum_g f_1(g)``, so its logarithm bounds ``log q^G(w)`` from below. The true permutation is an
exact draw from ``f_1 / Z``: a chain that runs back from it stands for one of the forward chains,
and its weight among theirs bounds ``log q^G(w)`` from above.

``f_0(g) = exp sum_l sum_i M_l[i, g_l(i)]`` with the pairs of mean field; it is drawn from, up to an
importance weight close to one, row by row. The kernels swap pairs of units of one group, each with
its conditional probability given the other groups, disjoint pairs at once: at every temperature all
pairs of all groups have their turn. What limits the bounds is how often a pair has its turn, be it
at many temperatures or at few. The order is fixed, and the way back takes it in reverse.

Short forward chains come first. They choose between two paths, and tell where chains miss all
permutations that count: where they make less than one of ``sum_g f_1(g)``, which holds the true
permutation's one, the bound on ``log q^G(w)`` from below is that of this term alone. Both choices
are functions of ``w`` and of draws that serve no other purpose, so that the bounds remain bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.density.density import Density, gather_pairs
from pyro_perm.estimators import _costs, _proposal
from pyro_perm.estimators._coupled_groups import expected_pairs, marginals_at
from pyro_perm.estimators._proposal import (
    Proposal,
    fit_proposals,
    identity,
    log_mean,
    select,
)
from pyro_perm.estimators.estimator import (
    Bounds,
    Estimator,
    joint_draws,
    refuse_gradient,
    register_estimator,
    require_positive,
    require_served,
    unit_actions,
)
from pyro_perm.permanent.row_by_row import sample_rescaled
from pyro_perm.symmetry.separable import coupled_sites, separable_sites

_TRANSPOSITIONS = 10
# How many temperatures certificates try, one after the other.
_NUM_STEPS_THAT_COMPETE = (100, 400)
# Short forward chains choose the path: this share of the steps.
_PILOT_SHARE, _NUM_PILOT_CHAINS = 4, 2
# Gathering, drawing and putting back what a pair of units exchanges.
_COST_OF_SWAPS = 10


@register_estimator
@dataclass(frozen=True)
class AnnealedImportanceSampled(Estimator):
    """Annealed importance sampling from both ends, for evaluation: it has no gradient.

    A group on two axes of one site (recurrent weights) moves by one transposition at a time, and
    wants more steps.

    :param num_steps: number of temperatures.
    :param num_chains: number of chains in each direction.
    :raises ValueError: if either is not a positive int.
    """

    num_steps: int = 100
    num_chains: int = 2

    is_lower_bound = True
    method = "annealed importance sampling"

    def __post_init__(self) -> None:
        require_positive("num_steps", self.num_steps)
        require_positive("num_chains", self.num_chains)

    def serves(self, density: Density) -> str | None:
        """Groups that only permute units, under base guides that draw sites independently."""
        return joint_draws(density) or unit_actions(density)

    def cost(self, density: Density) -> float:
        """At every step unit pairs, and a turn for every pair of units, along every chain."""
        units = sum(size**2 for size in density.symmetry.groups.values())
        step = _costs.all_unit_pairs(density) + _COST_OF_SWAPS * units
        chains = 2 * self.num_chains + 2 * _NUM_PILOT_CHAINS / _PILOT_SHARE
        return _proposal.cost(density, 2 * self.num_chains) + self.num_steps * chains * step

    @classmethod
    def candidates(cls, density: Density) -> Sequence[AnnealedImportanceSampled]:
        """Shorter and longer ones, for groups that share sites: others need no annealing."""
        if not coupled_sites(density.symmetry) or cls().serves(density):
            return []
        return [cls(num_steps) for num_steps in _NUM_STEPS_THAT_COMPETE]

    def log_ratio(self, density: Density) -> Tensor:
        """The upper one of the two bounds on ``log q^G(w) - log q(w)``.

        :raises ValueError: if it does not serve the density, and at backpropagation.
        """
        log_ratio = self._log_sums(density)[0] - density.log_volume
        return refuse_gradient(self, log_ratio, density)

    def bounds(self, density: Density) -> Bounds:
        """Integrands for both bounds on the mutual information."""
        with_true, without = self._log_sums(density)
        order = density.log_volume
        return Bounds(order - with_true, order - without)

    @torch.no_grad()
    def _log_sums(self, density: Density) -> tuple[Tensor, Tensor]:
        """``log sum_g q(g w) / q(w)`` from above and from below, shape ``(*batch)``."""
        require_served(self, density)
        path, pilot = _best_path(density, -(-self.num_steps // _PILOT_SHARE))
        forward = path.forward(self.num_steps, self.num_chains)
        reverse = path.reverse(self.num_steps, self.num_chains)
        among = [log_mean(torch.cat([weight.unsqueeze(0), forward])) for weight in reverse]
        missed = pilot < 0
        return torch.stack(among).mean(0), log_mean(forward).masked_fill(missed, 0.0)


class _Kernel(NamedTuple):
    """Swaps within one group, in rounds of disjoint pairs: shape ``(rounds, 2, pairs)``."""

    group: str
    rounds: Tensor


class _State(NamedTuple):
    """Where the chains are, and ``log f_0`` and ``log f_1`` there, shape ``(num, *batch)``."""

    permutations: Mapping[str, Tensor]
    start: Tensor
    end: Tensor


@dataclass(frozen=True)
class _Path:
    """The way from independent groups to the joint distribution.

    Attributes:
        density: the density at ``w``.
        pairs: ``M_l``, group -> shape ``(*batch, n, n)``.
    """

    density: Density
    pairs: dict[str, Tensor]

    @classmethod
    def from_proposal(cls, proposal: Proposal) -> _Path:
        density, marginals = proposal.density, proposal.marginals
        pairs = {g: expected_pairs(density, g, marginals, proposal.strength) for g in marginals}
        return cls(
            density, {g: m.expand(*density.batch_shape, *m.shape[-2:]) for g, m in pairs.items()}
        )

    def forward(self, num_steps: int, num_chains: int) -> Tensor:
        """Log-weights of chains from ``f_0`` to ``f_1``, shape ``(num_chains, *batch)``."""
        permutations, log_prob = self._draw(num_chains)
        state, kernels = self._at(permutations), self._kernels()
        log_weight = state.start - log_prob
        for step in range(1, num_steps + 1):
            log_weight = log_weight + (state.end - state.start) / num_steps
            if step < num_steps:
                state = self._move(state, step / num_steps, kernels)
        return log_weight

    def reverse(self, num_steps: int, num_chains: int) -> Tensor:
        """Log-weights that forward chains would have, had they ended in the true permutation."""
        state = self._at(identity(self.density, num_chains))
        kernels = [_Kernel(g, rounds.flip(0)) for g, rounds in reversed(self._kernels())]
        log_weight = (state.end - state.start) / num_steps
        for step in range(num_steps - 1, 0, -1):
            state = self._move(state, step / num_steps, kernels)
            log_weight = log_weight + (state.end - state.start) / num_steps
        return log_weight + state.start - self._draw(0, state.permutations)[1]

    def _draw(
        self, num: int, given: Mapping[str, Tensor] | None = None
    ) -> tuple[Mapping[str, Tensor], Tensor]:
        draws = {
            group: sample_rescaled(pairs, num, None if given is None else given[group])
            for group, pairs in self.pairs.items()
        }
        log_prob = torch.stack([log_prob for _, log_prob in draws.values()]).sum(0)
        return {group: permutation for group, (permutation, _) in draws.items()}, log_prob

    def _at(self, permutations: Mapping[str, Tensor]) -> _State:
        terms = [gather_pairs(self.pairs[group], p) for group, p in permutations.items()]
        return _State(permutations, torch.stack(terms).sum(0), self.density.log_ratio(permutations))

    def _kernels(self) -> list[_Kernel]:
        return [
            _Kernel(group, _tournament(pairs.shape[-1]).to(pairs.device))
            for group, pairs in self.pairs.items()
        ]

    def _move(self, state: _State, t: float, kernels: Sequence[_Kernel]) -> _State:
        """Kernels that leave ``f_t`` invariant, one after the other."""
        for kernel in kernels:
            if _splits_into_pairs(self.density, kernel.group):
                state = self._swap(state, t, kernel)
            else:
                state = self._transpose(state, t, kernel.group)
        return state

    def _swap(self, state: _State, t: float, kernel: _Kernel) -> _State:
        group, rounds = kernel
        before = state.permutations[group]
        others = {g: p for g, p in state.permutations.items() if g != group}
        here = marginals_at(self.density, others) if others else self.density
        start, end = (
            pairs.expand(*before.shape, before.shape[-1])
            for pairs in (self.pairs[group], expected_pairs(here, group, {}))
        )
        after = _swap_pairs(torch.lerp(start, end, t), before, rounds)
        gains = (_pair_sums(pairs, after) - _pair_sums(pairs, before) for pairs in (start, end))
        start_gain, end_gain = gains
        return _State(
            {**state.permutations, group: after}, state.start + start_gain, state.end + end_gain
        )

    def _transpose(self, state: _State, t: float, group: str) -> _State:
        for _ in range(_TRANSPOSITIONS):
            before = state.permutations[group]
            rows = torch.rand(before.shape, device=before.device).argsort(-1)[..., :2]
            after = before.scatter(-1, rows, before.gather(-1, rows.flip(-1)))
            proposed = self._at({**state.permutations, group: after})
            gain = torch.lerp(proposed.start - state.start, proposed.end - state.end, t)
            accept = torch.rand_like(gain) < gain.sigmoid()
            state = _State(
                {**state.permutations, group: torch.where(accept[..., None], after, before)},
                torch.where(accept, proposed.start, state.start),
                torch.where(accept, proposed.end, state.end),
            )
        return state


def _best_path(density: Density, num_steps: int) -> tuple[_Path, Tensor]:
    """The path along which a few short forward chains make ``log q^G(w)`` largest.

    :returns: the path, and what these chains make of ``log sum_g q(g w) / q(w)``, ``(*batch)``.
    """
    proposals = fit_proposals(density)
    paths = [_Path.from_proposal(proposal) for proposal in proposals]
    scores = torch.stack([log_mean(path.forward(num_steps, _NUM_PILOT_CHAINS)) for path in paths])
    best = paths[0] if len(paths) == 1 else _Path.from_proposal(select(proposals, scores))
    return best, scores.amax(0)


def _splits_into_pairs(density: Density, group: str) -> bool:
    others = frozenset(density.symmetry.spec) - {group}
    sites = separable_sites(density.symmetry, group, others)
    return set(sites) == set(density.symmetry.spec[group])


def _swap_pairs(pairs: Tensor, permutations: Tensor, rounds: Tensor) -> Tensor:
    """Swap units, each pair with its conditional probability, round by round.

    :param pairs: log weights, shape ``(*batch, n, n)``.
    :param permutations: shape ``(*batch, n)``.
    :param rounds: disjoint pairs of rows, shape ``(rounds, 2, pairs)``.
    """
    size = permutations.shape[-1]
    weights = pairs.flatten(-2)
    for rows in rounds:
        now = permutations[..., rows]
        then = now.flip(-2)
        gain = weights.gather(-1, (size * rows + then).flatten(-2))
        gain = gain - weights.gather(-1, (size * rows + now).flatten(-2))
        gain = gain.unflatten(-1, rows.shape).sum(-2)
        swap = torch.rand_like(gain) < gain.sigmoid()
        settled = torch.where(swap.unsqueeze(-2), then, now)
        permutations = permutations.index_copy(-1, rows.flatten(), settled.flatten(-2))
    return permutations


def _pair_sums(pairs: Tensor, permutations: Tensor) -> Tensor:
    return pairs.gather(-1, permutations.unsqueeze(-1)).sum((-2, -1))


@lru_cache
def _tournament(size: int) -> Tensor:
    """Every pair of rows once, in rounds of disjoint pairs, by the circle method.

    :returns: shape ``(rounds, 2, size // 2)``.
    """
    num_rounds = size - 1 + size % 2
    rounds = torch.arange(num_rounds, device="cpu").unsqueeze(-1)
    distances = torch.arange(1, (num_rounds + 1) // 2, device="cpu")
    first, second = (rounds + distances) % num_rounds, (rounds - distances) % num_rounds
    if size % 2 == 0:
        first = torch.cat([rounds, first], -1)
        second = torch.cat([torch.full_like(rounds, size - 1), second], -1)
    return torch.stack([first, second], -2)
