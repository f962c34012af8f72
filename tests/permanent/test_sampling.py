import math

import pytest
import torch
from enumeration import all_permutations, log_matrices, log_weights_of
from hypothesis import given, settings
from torch import Tensor
from torch.testing import assert_close

from pyro_perm.permanent import (
    bethe,
    log_permanent,
    permutation_log_prob,
    permutation_marginals,
    sample_permutations,
)

INF = math.inf
properties = settings(max_examples=40)
DEGENERATE = {
    "forbidden": torch.full((4, 4), -INF),
    "one column for all": torch.tensor([[0.0, -INF, -INF, -INF]] * 4),
    "identity": torch.full((4, 4), -INF).fill_diagonal_(0.0),
    "underflow": torch.tensor([[0.0, -900.0, -2000.0]] * 3),
    "wide": torch.tensor([[1e4, -1e4, 0.0], [1e4, 0.0, -1e4], [1e4, 1.0, 2.0]]),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def total_log_prob(log_weights: Tensor) -> Tensor:
    return permutation_log_prob(log_weights, all_permutations(len(log_weights))).logsumexp(0)


@properties
@given(log_matrices(5, scales=(0.1, 3.0, 50.0, 1e4)))
def test_probabilities_sum_to_one(log_weights):
    assert total_log_prob(log_weights).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_weights(name):
    log_weights = DEGENERATE[name].double()
    assert total_log_prob(log_weights).item() == pytest.approx(0.0, abs=1e-12)
    permutations, log_prob = sample_permutations(log_weights, 200, generator=seeded())
    assert (permutations.sort(-1).values == torch.arange(len(log_weights))).all()
    every = permutation_log_prob(log_weights, all_permutations(len(log_weights)))
    assert every.isfinite().all() and log_prob.isfinite().all()


def test_samples_are_permutations_with_their_own_probability():
    log_weights = torch.randn(3, 2, 9, 9, generator=seeded()).mul(3).double()
    permutations, log_prob = sample_permutations(log_weights, 50, generator=seeded(1))
    assert permutations.shape == (50, 3, 2, 9) and log_prob.shape == (50, 3, 2)
    assert (permutations.sort(-1).values == torch.arange(9)).all()
    assert_close(permutation_log_prob(log_weights, permutations), log_prob)
    assert_close(permutation_log_prob(log_weights[2, 1], permutations[:, 2, 1]), log_prob[:, 2, 1])


def test_frequencies_match_probabilities():
    log_weights = torch.randn(4, 4, generator=seeded()).double()
    permutations, _ = sample_permutations(log_weights, 40_000, generator=seeded(1))
    expected = permutation_log_prob(log_weights, all_permutations(4)).exp()
    matches = (permutations[:, None] == all_permutations(4)).all(-1)
    errors = (matches.double().mean(0) - expected) / (expected * (1 - expected) / 40_000).sqrt()
    assert errors.abs().max() < 4


def test_rank_one_weights_draw_uniform_permutations():
    log_weights = torch.linspace(-5, 5, 5).double()[:, None].expand(5, 5)
    log_prob = permutation_log_prob(log_weights, all_permutations(5))
    assert_close(log_prob, torch.full_like(log_prob, -math.lgamma(6)))


def test_certain_rows_come_first():
    # In the order of the rows, row 0 would take column 1 half of the time.
    log_weights = torch.tensor([[0.0, 0.0, -40.0], [-40.0, 0.0, -40.0], [-40.0, -40.0, 0.0]])
    identity = torch.arange(3)
    assert permutation_log_prob(log_weights, identity).item() == pytest.approx(0.0, abs=1e-6)


def test_importance_weights_average_to_the_permanent():
    log_matrix = torch.randn(7, 7, generator=seeded()).mul(1.5).double()
    proposal = bethe(log_matrix).marginals.log()
    permutations, log_prob = sample_permutations(proposal, 4000, generator=seeded(1))
    log_ratio = log_matrix[torch.arange(7), permutations].sum(-1) - log_prob
    weights = (log_ratio - log_permanent(log_matrix)).exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(4000)
    assert weights.std() < 2


def test_the_true_posterior_is_proposed_exactly_where_rows_are_independent():
    blocks = torch.full((6, 6), -INF, dtype=torch.double)
    for start in (0, 2, 4):
        blocks[start : start + 2, start : start + 2] = torch.randn(2, 2, generator=seeded(start))
    proposal = permutation_marginals(blocks).log()
    log_posterior = log_weights_of(blocks) - log_permanent(blocks)
    possible = log_posterior > -INF
    log_prob = permutation_log_prob(proposal, all_permutations(6)[possible])
    assert_close(log_prob, log_posterior[possible])


def test_generator_makes_samples_reproducible():
    log_weights = torch.zeros(6, 6)
    first, _ = sample_permutations(log_weights, 5, generator=seeded())
    again, _ = sample_permutations(log_weights, 5, generator=seeded())
    other, _ = sample_permutations(log_weights, 5, generator=seeded(1))
    assert (first == again).all() and (first != other).any()


def test_wrong_shapes():
    with pytest.raises(ValueError, match="shape"):
        sample_permutations(torch.zeros(3, 4), 2)
    with pytest.raises(ValueError, match=r"do not end in \(2, 3\)"):
        permutation_log_prob(torch.zeros(2, 3, 3), torch.zeros(3, dtype=torch.long))
