"""Bidirectional annealed importance sampling: kernels, both bounds, tightness."""

import itertools

import pytest
import torch
from problems import PROBLEMS, one_hidden_layer
from test_density import draw
from test_importance_sampled import mean_and_error, two_layers

import pyro_perm as pp
from pyro_perm.estimators.annealed import _Path, _swap_pairs, _tournament
from pyro_perm.estimators.proposal import fit_proposals


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_bounds_lie_on_their_side_of_exact_and_close_to_it(problem):
    _, _, density = draw(problem, num_particles=150)
    exact = -pp.Exact().log_ratio(density)
    bounds = pp.AnnealedImportanceSampled(num_steps=10, num_chains=4).bounds(density)
    below, error_below = mean_and_error(bounds.lower - exact)
    above, error_above = mean_and_error(bounds.upper - exact)
    assert -0.2 <= below <= 4 * error_below + 1e-9
    assert -4 * error_above - 1e-9 <= above <= 0.2


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


def test_forward_weights_are_unbiased_and_reverse_ones_inversely():
    density = two_layers(4, 2, 0.2, 2000)
    log_sum = density.symmetry.log_order + pp.Exact().log_ratio(density)
    path = _Path.from_proposal(fit_proposals(density)[-1])
    forward = (path.forward(5, 1)[0][0] - log_sum).exp()
    mean, error = mean_and_error(forward)
    assert abs(mean - 1) <= 4 * error
    reverse = (log_sum - path.reverse(5, 1)[0]).exp()
    mean, error = mean_and_error(reverse)
    assert abs(mean - 1) <= 4 * error


def test_more_temperatures_close_the_gap_and_beat_importance_sampling():
    density = two_layers(12, 2, 0.25, 12)

    def gap(estimator):
        bounds = estimator.bounds(density)
        return (bounds.upper - bounds.lower).mean().item()

    short, long = (gap(pp.AnnealedImportanceSampled(steps, 4)) for steps in (5, 100))
    assert long < 0.5 * short
    assert long < 0.5 * gap(pp.ImportanceSampled(16))


def test_one_unit_has_nothing_to_tell():
    _, _, density = draw(one_hidden_layer(1), num_particles=3)
    for estimator in (pp.AnnealedImportanceSampled(3, 2), pp.ImportanceSampled(2)):
        for bound in estimator.bounds(density):
            torch.testing.assert_close(bound, torch.zeros(3))


@pytest.mark.parametrize("name", ["num_steps", "num_chains"])
def test_bad_counts_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive int, but is 0"):
        pp.AnnealedImportanceSampled(**{name: 0})
