r"""Bidirectional annealed importance sampling over permutations (Grosse, Ghahramani & Adams 2015).

From ``f_0``, in which the groups are independent, to ``f_1(g) = q(g w) / q(w)`` run the
unnormalized distributions ``f_t = f_0^(1-t) f_1^t``. A chain that starts in ``f_0`` and moves by
kernels that leave each ``f_t`` invariant collects weights whose average is unbiased for
``sum_g f_1(g)``, so its logarithm bounds ``log q^G(w)`` from below. The true permutation is an
exact draw from ``f_1 / Z``: a chain that runs back from it stands for one of the forward chains,
and its weight among theirs bounds ``log q^G(w)`` from above.

``f_0(g) = exp sum_l sum_i M_l[i, g_l(i)]`` with the pairs of mean field; it is drawn from, up to an
importance weight close to one, row by row. The kernels pair the units of a group at random and
swap each pair, all pairs at once, with its conditional probability given the other groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_perm.estimators.coupling import separable_sites
from pyro_perm.estimators.density import FactorizedDensity, gather_pairs
from pyro_perm.estimators.estimator import Bounds, Estimator, require_positive
from pyro_perm.estimators.mean_field import expected_pairs, moved
from pyro_perm.estimators.proposal import Proposal, fit_proposals, identity, log_mean, select
from pyro_perm.estimators.rescaled_sampling import sample_rescaled
from pyro_perm.symmetry.permutation_symmetry import Permutations

_SWEEPS = 10


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
    num_chains: int = 4

    is_lower_bound = True

    def __post_init__(self) -> None:
        require_positive("num_steps", self.num_steps)
        require_positive("num_chains", self.num_chains)

    def log_ratio(self, density: FactorizedDensity) -> Tensor:
        """The upper one of the two bounds on ``log q^G(w) - log q(w)``, without gradient."""
        return self._log_sums(density)[0] - density.symmetry.log_order

    def bounds(self, density: FactorizedDensity) -> Bounds:
        """Integrands for both bounds on the mutual information."""
        with_true, without = self._log_sums(density)
        order = density.symmetry.log_order
        return Bounds(order - with_true, order - without)

    @torch.no_grad()
    def _log_sums(self, density: FactorizedDensity) -> tuple[Tensor, Tensor]:
        """``log sum_g q(g w) / q(w)`` from above and from below, shape ``(*batch)``."""
        path = _best_path(density, (self.num_steps + 1) // 2)
        forward = path.forward(self.num_steps, self.num_chains)
        reverse = path.reverse(self.num_steps, self.num_chains)
        among = [log_mean(torch.cat([weight.unsqueeze(0), forward])) for weight in reverse]
        return torch.stack(among).mean(0), log_mean(forward)


@dataclass(frozen=True)
class _Path:
    """The way from independent groups to the joint distribution.

    Attributes:
        density: the density at ``w``.
        pairs: ``M_l``, group -> shape ``(*batch, n, n)``.
    """

    density: FactorizedDensity
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
        state, log_prob = self._draw(num_chains)
        log_weight = self._log_start(state) - log_prob
        for step in range(1, num_steps + 1):
            log_weight = log_weight + self._log_change(state) / num_steps
            if step < num_steps:
                state = self._move(state, step / num_steps, list(self.pairs))
        return log_weight

    def reverse(self, num_steps: int, num_chains: int) -> Tensor:
        """Log-weights that forward chains would have, had they ended in the true permutation."""
        state: Permutations = identity(self.density, num_chains)
        log_weight = self._log_change(state) / num_steps
        for step in range(num_steps - 1, 0, -1):
            state = self._move(state, step / num_steps, list(self.pairs)[::-1])
            log_weight = log_weight + self._log_change(state) / num_steps
        return log_weight + self._log_start(state) - self._draw(0, state)[1]

    def _draw(self, num: int, given: Permutations | None = None) -> tuple[Permutations, Tensor]:
        draws = {
            group: sample_rescaled(pairs, num, None if given is None else given[group])
            for group, pairs in self.pairs.items()
        }
        log_prob = torch.stack([log_prob for _, log_prob in draws.values()]).sum(0)
        return {group: permutation for group, (permutation, _) in draws.items()}, log_prob

    def _log_start(self, state: Permutations) -> Tensor:
        terms = [gather_pairs(self.pairs[group], p) for group, p in state.items()]
        return torch.stack(terms).sum(0)

    def _log_change(self, state: Permutations) -> Tensor:
        return self.density.log_ratio(state) - self._log_start(state)

    def _move(self, state: Permutations, t: float, groups: list[str]) -> Permutations:
        """Kernels that leave ``f_t`` invariant, one group after the other."""
        moving = dict(state)
        for group in groups:
            others = {g: p for g, p in moving.items() if g != group}
            if _splits_into_pairs(self.density, group):
                here = moved(self.density, others) if others else self.density
                pairs = (1 - t) * self.pairs[group] + t * expected_pairs(here, group, {})
                moving[group] = _swap_pairs(pairs, moving[group])
            else:
                moving[group] = self._transpose(moving, group, t)
        return moving

    def _transpose(self, state: Permutations, group: str, t: float) -> Tensor:
        moving = dict(state)
        for _ in range(_SWEEPS):
            permutations = moving[group]
            rows = _random_rows(permutations)[..., :2]
            swapped = permutations.gather(-1, rows.flip(-1))
            proposed = {**moving, group: permutations.scatter(-1, rows, swapped)}
            now, then = (
                (1 - t) * self._log_start(s) + t * self.density.log_ratio(s)
                for s in (moving, proposed)
            )
            accept = torch.rand_like(now) < (then - now).sigmoid()
            moving[group] = torch.where(accept[..., None], proposed[group], permutations)
        return moving[group]


def _best_path(density: FactorizedDensity, num_steps: int) -> _Path:
    """The path along which a few short forward chains make ``log q^G(w)`` largest."""
    proposals = fit_proposals(density)
    paths = [_Path.from_proposal(proposal) for proposal in proposals]
    if len(paths) == 1:
        return paths[0]
    scores = torch.stack([log_mean(path.forward(num_steps, 2)) for path in paths])
    return _Path.from_proposal(select(proposals, scores))


def _splits_into_pairs(density: FactorizedDensity, group: str) -> bool:
    others = frozenset(density.symmetry.spec) - {group}
    sites = separable_sites(density.symmetry, group, others)
    return set(sites) == set(density.symmetry.spec[group])


def _swap_pairs(pairs: Tensor, permutations: Tensor) -> Tensor:
    """Swap units in random disjoint pairs, each pair with its conditional probability.

    :param pairs: log weights, shape ``(*batch, n, n)`` or ``(num, *batch, n, n)``.
    :param permutations: shape ``(num, *batch, n)``.
    """
    size = permutations.shape[-1]
    num_pairs = size // 2
    weights = pairs.expand(*permutations.shape[:-1], size, size).flatten(-2)
    for _ in range(_SWEEPS):
        rows = _random_rows(permutations)[..., : 2 * num_pairs]
        now = permutations.gather(-1, rows)
        then = now.roll(num_pairs, -1)
        gain = weights.gather(-1, size * rows + then) - weights.gather(-1, size * rows + now)
        gain = gain[..., :num_pairs] + gain[..., num_pairs:]
        swap = torch.rand_like(gain) < gain.sigmoid()
        moved_to = torch.where(torch.cat([swap, swap], -1), then, now)
        permutations = permutations.scatter(-1, rows, moved_to)
    return permutations


def _random_rows(permutations: Tensor) -> Tensor:
    """The rows of every permutation in an order of its own: chains must be independent."""
    return torch.rand(permutations.shape, device=permutations.device).argsort(-1)
