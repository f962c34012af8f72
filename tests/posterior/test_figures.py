"""Every figure is drawn, and shows what it was given."""

import math

import matplotlib
import numpy as np
import pyro
import pytest
import torch
from matplotlib import pyplot
from problems import one_hidden_layer, recurrent, two_hidden_layers
from pyro import poutine

import pyro_perm as pp
from pyro_perm import figures

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    pyplot.close("all")


def prediction(num=400):
    x = torch.linspace(1, -1, 9)
    means = 2 * x + 0.1 * torch.randn(num, 1)
    return x, pp.Prediction(means + 0.5 * torch.randn(num, 9), means, None)


def ready_guide(problem, **kwargs):
    pyro.clear_param_store()
    guide = problem.guide(**kwargs)
    guide(*problem.args)
    return guide


def test_bands_are_the_quantiles_along_the_sorted_input():
    x, predicted = prediction()
    ax = figures.plot_predictive_bands(x[:, None], predicted, (x, 2 * x), label="q")
    mean, points = ax.lines
    np.testing.assert_allclose(mean.get_xdata(), x.flip(0))
    np.testing.assert_allclose(mean.get_ydata(), predicted.mean.flip(0))
    np.testing.assert_allclose(points.get_ydata(), 2 * x)
    assert mean.get_label() == "q"
    widest = ax.collections[0].get_paths()[0].vertices
    for quantile in (0.05, 0.95):
        end = predicted.quantiles([quantile])[0, -1].item()
        assert np.isclose(widest, [-1.0, end]).all(-1).any()


def test_bands_need_one_input_and_one_output():
    _, predicted = prediction()
    with pytest.raises(ValueError, match="needs one input and one output"):
        figures.plot_predictive_bands(torch.randn(9, 2), predicted)


def test_exchangeable_units_are_mirror_images_once_symmetrized():
    problem = one_hidden_layer(3)
    symmetry = problem.symmetry()
    symmetry.bind(poutine.trace(problem.model).get_trace(*problem.args))
    center = {site: torch.randn(symmetry.site_shape(site)) for site in symmetry.sites}
    q = {site: value + 0.1 * torch.randn(2000, *value.shape) for site, value in center.items()}
    samples = {"$q$": q, "$q^G$": symmetry.apply(symmetry.sample((2000,)), q)}
    axes = figures.plot_exchangeable_units(samples, symmetry, "w1", units=(0, 2), entry=1, bins=8)
    assert [ax.get_title() for ax in axes] == ["$q$", "$q^G$"]
    density, symmetrized = (ax.collections[0].get_array().reshape(8, 8) for ax in axes)
    noise = symmetrized[symmetrized > 0].mean()
    assert np.abs(density - density.T).max() > noise
    assert np.abs(symmetrized - symmetrized.T).max() < noise
    column, row = np.unravel_index(density.T.argmax(), (8, 8))
    edges = np.linspace(*axes[0].get_xlim(), 9)
    assert edges[column] - 0.2 < center["w1"][0, 1] < edges[column + 1] + 0.2
    assert edges[row] - 0.2 < center["w1"][2, 1] < edges[row + 1] + 0.2


def test_units_that_do_not_exist_are_refused():
    problem = one_hidden_layer(3)
    symmetry = problem.symmetry()
    symmetry.bind(poutine.trace(problem.model).get_trace(*problem.args))
    samples = {"q": {"w1": torch.randn(5, 3, 2), "b2": torch.randn(5, 1)}}
    with pytest.raises(ValueError, match="no group permutes site 'b2'"):
        figures.plot_exchangeable_units(samples, symmetry, "b2")
    with pytest.raises(ValueError, match=r"no units \(0, 3\) with a weight 0"):
        figures.plot_exchangeable_units(samples, symmetry, "w1", units=(0, 3))


def test_information_lies_between_its_bounds_and_below_the_group_order():
    problem = one_hidden_layer(4)
    elbos = [
        pp.symmetrized_elbo(
            problem.model,
            ready_guide(problem, init_scale=scale),
            *problem.args,
            num_samples=8,
            progress=False,
        )
        for scale in (0.8, 0.3)
    ]
    ax = figures.plot_information([10, 20], elbos)
    lower, upper, order = ax.lines
    assert lower.get_xdata().tolist() == [10, 20]
    for k, elbo in enumerate(elbos):
        information = elbo.mutual_information
        assert lower.get_ydata()[k] < information.lower
        assert upper.get_ydata()[k] > information.upper
    np.testing.assert_allclose(order.get_ydata(), math.log(24))
    assert ax.get_ylim()[1] > math.log(24)


@pytest.mark.parametrize(
    "problem", [one_hidden_layer(12), two_hidden_layers(), recurrent()], ids=str
)
def test_overlap_is_doubly_stochastic_between_apart_and_coinciding(problem):
    for scale in (0.01, 0.3, 100.0):
        guide = ready_guide(problem, init_scale=scale)
        overlap = pp.unit_overlap(guide, *problem.args, num_samples=5)
        for group, size in guide.symmetry.groups.items():
            matrix = overlap[group]
            ones = torch.ones(size)
            torch.testing.assert_close(matrix.sum(0), ones, atol=1e-4, rtol=0)
            torch.testing.assert_close(matrix.sum(1), ones, atol=1e-4, rtol=0)
            if scale == 0.01:
                assert matrix.diagonal().min() > 0.9
            if scale == 100.0:
                assert matrix.max() < 0.95


def test_overlap_is_the_posterior_over_permutations():
    problem = one_hidden_layer(2)
    guide = ready_guide(problem, init_scale=0.7)
    torch.manual_seed(1)
    found = pp.unit_overlap(guide, *problem.args, num_samples=1)["hidden"]
    torch.manual_seed(1)
    draw = poutine.trace(guide).get_trace(*problem.args)
    log_q = []
    for p in ([0, 1], [1, 0]):
        values = {s: draw.nodes[f"{s}_unconstrained"]["value"] for s in guide.symmetry.sites}
        moved = guide.symmetry.apply({"hidden": torch.tensor(p)}, values)
        fns = {s: draw.nodes[f"{s}_unconstrained"]["fn"] for s in moved}
        log_q.append(sum(fns[s].log_prob(v).sum() for s, v in moved.items()))
    stays, swaps = torch.stack(log_q).softmax(0)
    expected = torch.stack([stays, swaps, swaps, stays]).view(2, 2)
    torch.testing.assert_close(found, expected.detach())


def test_overlap_needs_a_sample():
    problem = one_hidden_layer(2)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        pp.unit_overlap(ready_guide(problem), *problem.args, num_samples=0)


def test_overlapping_units_are_side_by_side():
    overlap = torch.eye(4)
    for i, j in ((0, 2), (1, 3)):
        overlap[i, i] = overlap[j, j] = 0.7
        overlap[i, j] = overlap[j, i] = 0.3
    ax = figures.plot_overlap(overlap)
    shown = ax.images[0].get_array()
    labels = [int(text.get_text()) for text in ax.get_xticklabels()]
    assert sorted(labels) == [0, 1, 2, 3]
    np.testing.assert_allclose(shown, overlap[labels][:, labels])
    assert np.count_nonzero(np.triu(shown, 2)) == 0


def test_figures_go_into_given_axes():
    x, predicted = prediction()
    _, ax = pyplot.subplots()
    assert figures.plot_predictive_bands(x, predicted, ax=ax) is ax
    assert figures.plot_overlap(torch.eye(3), ax=ax) is ax
    assert pyplot.get_fignums() == [1]


def test_a_history_shows_the_averaged_elbo_its_bounds_and_the_step_that_was_kept():
    history = pp.History(losses=[9.0, 5.0, 3.0, 2.0], scores={2: 0.0, 3: 1.0}, best_step=3)
    problem = one_hidden_layer(3)
    elbo = pp.symmetrized_elbo(
        problem.model, ready_guide(problem), *problem.args, num_samples=20, progress=False
    )
    ax = figures.plot_history(history, elbo, memory=2, label="q")
    averaged, kept = ax.lines
    np.testing.assert_allclose(averaged.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(averaged.get_ydata(), history.smoothed_elbo(2))
    assert kept.get_xdata()[0] == 3
    (band,) = ax.patches
    low, high = elbo.lower - elbo.lower_standard_error, elbo.upper + elbo.upper_standard_error
    shown = band.get_window_extent().transformed(ax.transData.inverted())
    np.testing.assert_allclose([shown.y0, shown.y1], [low, high])
    assert ax.get_ylim()[0] < low < high < ax.get_ylim()[1]
    with pytest.raises(ValueError, match="the history has no steps"):
        figures.plot_history(pp.History())
