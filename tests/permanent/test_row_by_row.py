"""Permutations drawn row by row: normalized whatever the weights, near the permanent's own."""

import math

import pytest
import torch
from enumeration import all_permutations, log_matrices, log_weights_of
from hypothesis import given, settings
from marks import examples
from torch import Tensor
from torch.testing import assert_close

from pyro_perm.permanent import log_permanent
from pyro_perm.permanent.row_by_row import sample_rescaled

INF = math.inf
properties = settings(max_examples=examples(40))
DEGENERATE = {
    "forbidden": torch.full((4, 4), -INF),
    "one column for all": torch.tensor([[0.0, -INF, -INF, -INF]] * 4),
    "identity": torch.full((4, 4), -INF).fill_diagonal_(0.0),
    "underflow": torch.tensor([[0.0, -900.0, -2000.0]] * 3),
    "wide": torch.tensor([[1e4, -1e4, 0.0], [1e4, 0.0, -1e4], [1e4, 1.0, 2.0]]),
}


def gaussian(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.double, generator=generator)


def every_log_prob(log_matrix: Tensor) -> Tensor:
    """Log-probability of every permutation, shape (n!, ...)."""
    size, batch = log_matrix.shape[-1], log_matrix.shape[:-2]
    everything = all_permutations(size).reshape(-1, *(1,) * len(batch), size)
    return sample_rescaled(log_matrix, 0, everything.expand(-1, *batch, size).contiguous())[1]


@properties
@given(log_matrices(5, scales=(0.1, 3.0, 50.0, 1e4)))
def test_probabilities_sum_to_one(log_matrix):
    assert every_log_prob(log_matrix).logsumexp(0).item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1000.0])
def test_probabilities_of_a_batch_sum_to_one(spread):
    total = every_log_prob(gaussian(3, 5, 5, scale=spread)).logsumexp(0)
    assert_close(total, torch.zeros(3), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_weights(name):
    log_matrix = DEGENERATE[name].double()
    every = every_log_prob(log_matrix)
    assert every.isfinite().all()
    assert every.logsumexp(0).item() == pytest.approx(0.0, abs=1e-9)
    permutations, log_prob = sample_rescaled(log_matrix, 200)
    assert (permutations.sort(-1).values == torch.arange(len(log_matrix))).all()
    assert log_prob.isfinite().all()


def test_samples_are_permutations_with_their_own_probability():
    log_matrix = gaussian(3, 2, 9, 9, scale=3.0)
    permutations, log_prob = sample_rescaled(log_matrix, 50)
    assert permutations.shape == (50, 3, 2, 9) and log_prob.shape == (50, 3, 2)
    assert (permutations.sort(-1).values == torch.arange(9)).all()
    again, of_again = sample_rescaled(log_matrix, 0, permutations)
    assert torch.equal(again, permutations)
    assert_close(of_again, log_prob)
    alone = sample_rescaled(log_matrix[2, 1], 0, permutations[:, 2, 1])[1]
    assert_close(alone, log_prob[:, 2, 1])


def test_given_permutations_come_before_those_that_are_drawn():
    given_ones = all_permutations(4)[:3]
    permutations, log_prob = sample_rescaled(gaussian(4, 4), 5, given_ones)
    assert permutations.shape == (8, 4) and log_prob.shape == (8,)
    assert torch.equal(permutations[:3], given_ones)


def test_frequencies_match_probabilities():
    log_matrix = gaussian(4, 4)
    drawn, of_drawn = sample_rescaled(log_matrix, 40_000)
    log_prob = every_log_prob(log_matrix)
    index = (drawn[:, None] == all_permutations(4)).all(-1).double().argmax(-1)
    assert_close(of_drawn, log_prob[index])
    frequency, expected = index.bincount(minlength=24) / 40_000, log_prob.exp()
    errors = (frequency - expected) / (expected * (1 - expected) / 40_000).sqrt()
    assert errors.abs().max() < 4


def test_rank_one_weights_draw_uniform_permutations():
    rows, columns = torch.linspace(-5, 5, 5).double(), gaussian(5, scale=3.0)
    log_prob = every_log_prob(rows[:, None] + columns)
    assert_close(log_prob, torch.full_like(log_prob, -math.lgamma(6)))
    uniform = sample_rescaled(torch.zeros(7, 7), 3)[1]
    assert_close(uniform, torch.full((3,), -math.lgamma(8)))


def test_certain_rows_come_first():
    # In the order of the rows, row 0 would take column 1 half of the time.
    log_matrix = torch.tensor([[0.0, 0.0, -40.0], [-40.0, 0.0, -40.0], [-40.0, -40.0, 0.0]])
    assert sample_rescaled(log_matrix, 0, torch.arange(3)[None])[1].item() == pytest.approx(
        0.0, abs=1e-6
    )


def test_one_and_two_rows_are_drawn_exactly():
    two = gaussian(6, 2, 2)
    exact = log_weights_of(two).mT - log_permanent(two)
    assert_close(every_log_prob(two), exact, rtol=0, atol=0.01)
    alone, log_prob = sample_rescaled(gaussian(1, 1), 2)
    assert alone.tolist() == [[0], [0]] and log_prob.abs().max() < 1e-12


def test_independent_pairs_of_rows_are_drawn_exactly():
    blocks = torch.full((6, 6), -INF, dtype=torch.double)
    for start in (0, 2, 4):
        blocks[start : start + 2, start : start + 2] = gaussian(2, 2, seed=start)
    log_posterior = log_weights_of(blocks) - log_permanent(blocks)
    possible = log_posterior > -INF
    assert possible.sum() == 8
    log_prob = every_log_prob(blocks)[possible]
    assert_close(log_prob, log_posterior[possible], rtol=0, atol=0.01)


def test_importance_weights_average_to_the_permanent():
    log_matrix = gaussian(7, 7, scale=1.5)
    permutations, log_prob = sample_rescaled(log_matrix, 4000)
    log_ratio = log_matrix[torch.arange(7), permutations].sum(-1) - log_prob
    weights = (log_ratio - log_permanent(log_matrix)).exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(4000)
    assert weights.std() < 0.5


def test_the_seed_repeats_the_draws():
    def draws(seed):
        torch.manual_seed(seed)
        return sample_rescaled(torch.zeros(6, 6), 5)[0]

    assert torch.equal(draws(0), draws(0)) and not torch.equal(draws(0), draws(1))


def test_nothing_has_a_gradient():
    log_matrix = gaussian(3, 3).requires_grad_()
    assert not sample_rescaled(log_matrix, 2)[1].requires_grad


@pytest.mark.parametrize("shape", [(3, 4), (3,)])
def test_matrices_that_are_not_square_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected log weights of shape \(..., n, n\)"):
        sample_rescaled(torch.zeros(shape), 2)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 3), (1, 2, 4)])
def test_given_permutations_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"permutations of shape \(num, 2, 3\)"):
        sample_rescaled(torch.zeros(2, 3, 3), 2, torch.zeros(shape, dtype=torch.long))
