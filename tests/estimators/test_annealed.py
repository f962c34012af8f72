"""Bidirectional annealed importance sampling: kernels, both bounds, tightness."""

import itertools

import pytest
import torch
from densities import draw, mean_and_error, synthetic, two_layers
from problems import one_hidden_layer, recurrent, two_hidden_layers

import pyro_perm as pp
from pyro_perm.estimators._proposal import fit_proposals
from pyro_perm.estimators.annealed import _Path, _swap_pairs, _tournament


@pytest.mark.slow
@pytest.mark.parametrize("loc_scale", [0.0, 0.1, 0.2, 0.4, 0.8, 1.6])
@pytest.mark.parametrize("sizes", [(4, 4), (5, 4)], ids=str)
def test_bounds_hold_from_coinciding_to_separated_layers(sizes, loc_scale):
    first, second = sizes
    shapes = {"w1": (first, 2), "w2": (second, first), "w3": (1, second)}
    spec = {"first": {"w1": 0, "w2": 1}, "second": {"w2": 0, "w3": 1}}
    density = synthetic(spec, shapes, loc_scale, 300)
    exact = -pp.Exact().log_ratio(density)
    for estimator in (pp.AnnealedImportanceSampled(4, 2), pp.ImportanceSampled(4)):
        bounds = estimator.bounds(density)
        for gap in (exact - bounds.lower, bounds.upper - exact):
            mean, error = mean_and_error(gap)
            assert -4 * error - 1e-9 <= mean <= 0.6


@pytest.mark.parametrize("size", range(1, 10))
def test_every_pair_has_one_turn_in_a_tournament(size):
    rounds = _tournament(size)
    for rows in rounds:
        assert len(rows.unique()) == rows.numel() == size // 2 * 2
    pairs = {frozenset(pair) for pair in rounds.transpose(-1, -2).flatten(0, 1).tolist()}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(range(size), 2)}


def test_the_way_back_reverses_the_kernel():
    """In equilibrium journeys from ``x`` to ``y`` are as frequent as those back."""
    torch.manual_seed(0)
    num, pairs, rounds = 40000, torch.randn(3, 3), _tournament(3)
    everything = torch.tensor(list(itertools.permutations(range(3))))
    scores = pairs[torch.arange(3), everything].sum(-1)

    def journeys(rounds):
        start = scores.softmax(0).multinomial(num, replacement=True)
        ends = _swap_pairs(pairs.expand(num, 3, 3), everything[start], rounds)
        end = (ends.unsqueeze(1) == everything).all(-1).double().argmax(-1)
        return torch.bincount(6 * start + end, minlength=36).reshape(6, 6) / num

    forward, back = journeys(rounds), journeys(rounds.flip(0))
    torch.testing.assert_close(forward, back.T, rtol=0, atol=0.008)
    assert (forward - forward.T).abs().max() > 0.02


@pytest.mark.parametrize("problem", [one_hidden_layer(5), two_hidden_layers(3, 4), recurrent()])
def test_chains_know_their_densities(problem):
    _, _, density = draw(problem, num_particles=3)
    path = _Path.from_proposal(fit_proposals(density)[0])
    state = path._at(density.symmetry.sample((2, 3)))
    for t in (0.3, 0.8):
        state = path._move(state, t, path._kernels())
    fresh = path._at(state.permutations)
    torch.testing.assert_close(state.start, fresh.start)
    torch.testing.assert_close(state.end, fresh.end)


def test_swaps_draw_from_the_conditional_distribution():
    pairs = torch.randn(4, 4)
    everything = torch.tensor(list(itertools.permutations(range(4))))
    scores = pairs[torch.arange(4), everything].sum(-1)
    state = torch.arange(4).expand(8000, 4)
    for _ in range(4):
        state = _swap_pairs(pairs.expand(8000, 4, 4), state, _tournament(4))
    index = (state.unsqueeze(1) == everything).all(-1).double().argmax(-1)
    frequency = index.bincount(minlength=24) / 8000
    torch.testing.assert_close(frequency, scores.softmax(0), rtol=0, atol=0.025)


@pytest.mark.slow
def test_forward_weights_are_unbiased_and_reverse_ones_inversely():
    density = two_layers(4, 2, 0.2, 1000)
    log_sum = density.symmetry.log_order + pp.Exact().log_ratio(density)
    path = _Path.from_proposal(fit_proposals(density)[-1])
    forward = (path.forward(5, 1)[0] - log_sum).exp()
    mean, error = mean_and_error(forward)
    assert abs(mean - 1) <= 4 * error
    reverse = (log_sum - path.reverse(5, 1)[0]).exp()
    mean, error = mean_and_error(reverse)
    assert abs(mean - 1) <= 4 * error


@pytest.mark.slow
def test_more_temperatures_close_the_gap_and_beat_importance_sampling():
    density = two_layers(12, 2, 0.25, 12)

    def gap(estimator):
        bounds = estimator.bounds(density)
        return (bounds.upper - bounds.lower).mean().item()

    short, long = (gap(pp.AnnealedImportanceSampled(steps, 4)) for steps in (5, 100))
    assert long < 0.5 * short
    assert long < 0.5 * gap(pp.ImportanceSampled(16))


@pytest.mark.slow
def test_where_chains_miss_the_truth_nothing_above_log_order_is_reported():
    density = two_layers(20, 2, 0.4, 8)
    bounds = pp.AnnealedImportanceSampled(20, 2).bounds(density)
    order = density.symmetry.log_order
    assert (bounds.upper == order).any()
    assert bounds.upper.mean() <= order + 1


@pytest.mark.parametrize("name", ["num_steps", "num_chains"])
def test_bad_counts_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive int, but is 0"):
        pp.AnnealedImportanceSampled(**{name: 0})
