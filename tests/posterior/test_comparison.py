"""Differences of scores are those of the scores, without the noise that they share."""

import itertools
import math
import re

import matplotlib
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from problems import normal, observe, one_hidden_layer
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp

matplotlib.use("Agg")
BOUNDS = ["ELBO(q)", "ELBO(q^G), lower bound", "ELBO(q^G), upper bound"]
ESTIMATOR = pp.ImportanceSampled(8)


@pytest.fixture(autouse=True)
def _parameters_of_their_own():
    pyro.settings.set(module_local_params=True)
    yield
    pyplot.close("all")


def rectifier(x, y):
    w1, w2 = normal("w1", 3, 2), normal("w2", 3)
    observe(torch.relu(x @ w1.T) @ w2, y)


def of_rectifier(symmetries):
    """A plain guide, and others symmetrized, apart from each other."""
    pyro.set_rng_seed(2)
    x = torch.randn(6, 2)
    args = (x, x[:, 0].relu())
    guides = {}
    for name, symmetry in {"plain": None, **symmetries}.items():
        guides[name] = AutoNormal(rectifier, init_loc_fn=pp.init_to_fan_in, init_scale=0.3)
        if symmetry is not None:
            guides[name] = pp.AutoSymmetrized(guides[name], symmetry)
        guides[name](*args)
    return guides, args


PERMUTATIONS = pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}})
SCALES = pp.PermutationSymmetry({"P": {"w1": pp.Axis(0, scale=1), "w2": pp.Axis(0, scale=-1)}})


def test_the_order_of_the_guides_changes_no_score():
    guides, args = of_rectifier({"permuted": PERMUTATIONS, "rescaled": SCALES})
    pyro.set_rng_seed(0)
    options = {"num_samples": 8, "progress": False}
    first, *others = [
        pp.compare(rectifier, {name: guides[name] for name in names}, *args, **options)
        for names in itertools.permutations(guides)
    ]
    for found in others:
        for guide, name in itertools.product(guides, BOUNDS):
            assert found.score(name, guide) == first.score(name, guide)
    plain = pp.symmetrized_elbo(rectifier, guides["plain"], *args, symmetry=SCALES, **options)
    assert first.score(BOUNDS[1], "plain").value == pytest.approx(plain.lower)


def test_bounds_over_unlike_groups_are_told_apart():
    guides, args = of_rectifier({"permuted": PERMUTATIONS, "rescaled": SCALES})
    options = {"num_samples": 4, "progress": False}
    lines = repr(pp.compare(rectifier, guides, *args, **options)).splitlines()
    cells = [re.split(" {3,}", line) for line in lines]
    assert cells[1] == ["log |G|", "1.79 and scales", "1.79", "1.79 and scales", "unlike groups"]
    drifting = [line for line in lines if line.endswith("moves along orbits")]
    assert drifting == lines[2:3]
    del guides["rescaled"]
    assert "orbits" not in repr(pp.compare(rectifier, guides, *args, **options))


def test_groups_that_no_size_tells_apart_are_refused_for_a_plain_guide():
    x = torch.randn(5, 2)

    def model(x):
        w, v = normal("w", 3), normal("v", 3)
        observe(x[:, 0] * w.tanh().sum() + x[:, 1] * v.tanh().sum(), x[:, 1])

    bases = {name: AutoNormal(model, init_loc_fn=pp.init_to_fan_in) for name in "abc"}
    halves = [pp.PermutationSymmetry({"units": {site: 0}}) for site in "wv"]
    guides = {
        "a": bases["a"],
        "b": pp.AutoSymmetrized(bases["b"], halves[0]),
        "c": pp.AutoSymmetrized(bases["c"], halves[1]),
    }
    options = {"num_samples": 4, "progress": False}
    with pytest.raises(ValueError, match=r"and '[bc]' are .* choose one of them as symmetry="):
        pp.compare(model, guides, x, **options)
    found = pp.compare(model, guides, x, symmetry=halves[0], **options)
    _, orders, *_ = repr(found).splitlines()
    assert re.split(" {3,}", orders)[1:] == ["1.79", "1.79", "1.79", "unlike groups"]


@pytest.fixture
def problem():
    return one_hidden_layer(3)


def guide_of(problem, *, shift=0.0, symmetrized=True, estimator=ESTIMATOR):
    """Guides from one start, apart by a shift of all locations."""
    pyro.set_rng_seed(4)
    guide = problem.guide(estimator) if symmetrized else problem.base()
    guide(*problem.args)
    base = guide.base if symmetrized else guide
    with torch.no_grad():
        for loc in base.locs.parameters():
            loc += shift
    return guide


def compare(problem, guides, **kwargs):
    options = {"num_samples": 40, "num_predictive_samples": 50, "estimator": ESTIMATOR}
    return pp.compare(problem.model, guides, *problem.args, progress=False, **options | kwargs)


@pytest.mark.slow
def test_scores_are_those_of_the_functions(problem):
    guides = {"one": guide_of(problem, symmetrized=False), "two": guide_of(problem, shift=0.05)}
    x, y = problem.args
    found = compare(problem, guides, held_out=(x[:5], y[:5]))
    options = {"num_samples": 40, "estimator": ESTIMATOR, "progress": False}
    elbo = pp.symmetrized_elbo(
        problem.model, guides["one"], x, y, symmetry=problem.symmetry(), **options
    )
    for name, value, error in (
        ("ELBO(q)", elbo.base, elbo.base_standard_error),
        ("ELBO(q^G), lower bound", elbo.lower, elbo.lower_standard_error),
        ("ELBO(q^G), upper bound", elbo.upper, elbo.upper_standard_error),
    ):
        assert found.score(name, "one") == (pytest.approx(value), pytest.approx(error))
    prediction = pp.predict(
        problem.model, guides["one"], x[:5], y[:5], num_samples=50, progress=False
    )
    density = prediction.log_predictive_density
    assert found.score("held-out log-density", "one") == (
        pytest.approx(density.mean().item()),
        pytest.approx(density.std().item() / 5**0.5),
    )
    rmse = pp.metrics.rmse(prediction.mean, y[:5])
    assert found.score("RMSE", "one").value == pytest.approx(rmse)


@pytest.mark.slow
def test_differences_have_less_noise_than_scores(problem):
    guides = {"one": guide_of(problem, symmetrized=False), "two": guide_of(problem, shift=0.02)}
    found = compare(problem, guides)
    for name in BOUNDS:
        one, two = (found.score(name, guide) for guide in found.guides)
        difference, error = found.difference(name, "two")
        assert difference == pytest.approx(two.value - one.value)
        assert error < 0.3 * math.hypot(one.standard_error, two.standard_error)
        assert found.difference(name, "one", "two") == (pytest.approx(-difference), error)


def test_a_guide_and_its_symmetrization_differ_in_nothing(problem):
    """Permutations and estimators draw random numbers of their own; pairing must not mind."""
    guide = guide_of(problem, estimator=pp.InfoNCE(4))
    found = compare(problem, {"base": guide.base, "symmetrized": guide}, held_out=problem.args)
    for name in ("ELBO(q)", "held-out log-density", "RMSE"):
        assert found.difference(name, "symmetrized") == (0.0, 0.0)


@pytest.mark.slow
def test_standard_errors_of_differences_are_right(problem):
    """Over many seeds, differences spread as their standard errors say."""
    guides = {"one": guide_of(problem), "two": guide_of(problem, shift=0.3)}
    found = []
    for seed in range(20):
        pyro.set_rng_seed(seed)
        compared = compare(problem, guides, num_samples=10, estimator=pp.Exact())
        found.append(compared.difference("ELBO(q)", "two"))
    values, errors = map(torch.tensor, zip(*found, strict=True))
    assert values.std().item() == pytest.approx(errors.square().mean().sqrt().item(), rel=0.5)


def test_the_error_of_a_root_mean_square_is_that_of_the_bootstrap():
    from pyro_perm.posterior.comparison import _pseudo_values

    squares = torch.randn(400).square()
    values = _pseudo_values(squares)
    assert values.mean() == pytest.approx(squares.mean().sqrt().item())
    rows = torch.randint(400, (4000, 400))
    bootstrap = squares[rows].mean(1).sqrt().std()
    assert (values.std() / 20).item() == pytest.approx(bootstrap.item(), rel=0.1)


def classifier(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ w.T), obs=y)


def test_classes_are_scored_as_the_metrics_have_it():
    x = torch.randn(30, 2)
    y = (x[:, 0] > 0).long()
    guides = {name: AutoNormal(classifier, init_scale=0.3) for name in "ab"}
    for guide in guides.values():
        guide(x, y)
    options = {"num_samples": 4, "num_predictive_samples": 20, "progress": False}
    symmetry = pp.PermutationSymmetry({"inputs": {"w": pp.Axis(-1, index=(0,))}})
    compared = pp.compare(classifier, guides, x, y, held_out=(x, y), symmetry=symmetry, **options)
    prediction = pp.predict(classifier, guides["a"], x, y, num_samples=20, progress=False)
    accuracy, brier = (compared.score(name, "a").value for name in ("accuracy", "Brier score"))
    assert accuracy == pytest.approx(pp.metrics.accuracy(prediction.mean, y))
    assert brier == pytest.approx(pp.metrics.brier_score(prediction.mean, y))


def test_comparisons_print_and_draw_their_differences(problem):
    guides = {f"guide {k}": guide_of(problem, shift=0.1 * k) for k in range(3)}
    found = compare(problem, guides, held_out=problem.args)
    header, groups, *lines = repr(found).splitlines()
    assert header.split("   ")[-1] == "guide 2 - guide 0"
    assert groups.split() == ["log", "|G|", *["1.79"] * 3]
    assert [line.split("   ")[0].strip() for line in lines] == list(found.integrands)
    difference = found.difference("ELBO(q)", "guide 2")
    assert lines[0].endswith(f"{difference.value:.4g} +- {difference.standard_error:.2g}")
    axes = pp.figures.plot_comparison(found)
    assert len(axes) == len(found.integrands)
    points = axes[0].containers[0].lines[0].get_xdata()
    assert list(points) == [found.difference("ELBO(q)", f"guide {k}").value for k in (1, 2)]


@pytest.mark.slow
def test_loaders_are_compared_too(problem):
    def model(x, y):
        w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", 12, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(x @ w1.T) @ w2, 0.5), obs=y)

    x, y = problem.args
    guides = {name: AutoNormal(model, init_loc_fn=pp.init_to_fan_in) for name in "ab"}
    for guide in guides.values():
        guide(x, y)
    options = {
        "symmetry": pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}}),
        "num_samples": 6,
        "progress": False,
    }
    found = pp.compare(model, guides, [(x[:7], y[:7]), (x[7:], y[7:])], **options)
    expected = pp.compare(model, guides, x, y, **options)
    for name in BOUNDS:
        torch.testing.assert_close(found.integrands[name], expected.integrands[name])


TAKEN = r"one 'AutoNormal\.locs\.w1' for the guides 'one' and 'two'"


@pytest.fixture
def global_parameters():
    pyro.settings.set(module_local_params=False)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.mark.usefixtures("global_parameters")
def test_a_guide_whose_parameters_the_store_will_replace_is_refused(problem):
    first = problem.base()
    first(*problem.args)
    pyro.clear_param_store()
    second = problem.base()
    second(*problem.args)
    with pytest.raises(ValueError, match=r"values for the parameters of guide 'first', as guides"):
        compare(problem, {"first": first, "second": second}, symmetry=problem.symmetry())


@pytest.mark.usefixtures("global_parameters")
@pytest.mark.parametrize("clears", ["never", "between", "at the end"])
@pytest.mark.parametrize("symmetrized", [False, True])
@pytest.mark.parametrize("as_function", [False, True])
def test_guides_that_hold_the_same_parameters_are_refused(
    problem, clears, symmetrized, as_function
):
    """Whether they hold them already, or the second will find those of the first."""
    first = problem.base()
    first(*problem.args)
    if clears != "never":
        pyro.clear_param_store()
    second = problem.guide(ESTIMATOR) if symmetrized else problem.base()
    second(*problem.args)
    if clears == "between":
        first(*problem.args)
    if clears == "at the end":
        pyro.clear_param_store()
    guides = {"one": first, "two": second}
    if as_function:
        guides["one"] = lambda x, y: first(x, y)
    options = {} if symmetrized else {"symmetry": problem.symmetry()}
    with pytest.raises(ValueError, match=TAKEN):
        compare(problem, guides, **options)


@pytest.mark.usefixtures("global_parameters")
def test_guides_that_were_never_called_are_refused_too(problem):
    guides = {"one": problem.base(), "two": problem.guide(ESTIMATOR)}
    guides["one"](*problem.args)
    with pytest.raises(ValueError, match=TAKEN):
        compare(problem, guides)


@pytest.mark.usefixtures("global_parameters")
def test_one_guide_may_be_compared_under_several_groups(problem):
    base = problem.base()
    finer = pp.AutoSymmetrized(base, problem.symmetry(), estimator=ESTIMATOR)
    guides = {"plain": base, "one": finer, "two": pp.AutoSymmetrized(base, problem.symmetry())}
    for guide in guides.values():
        guide(*problem.args)
    found = compare(problem, guides, num_samples=4)
    assert found.difference("ELBO(q)", "two") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("held_out", "error", "message"),
    [
        (lambda x, y: (x, None), ValueError, r"observes nothing .* such as held_out=\(x, y\)"),
        (lambda x, y: x, TypeError, r"held_out is a tuple .*, but is a Tensor"),
    ],
)
def test_held_out_data_without_observations_are_refused(problem, held_out, error, message):
    guide = guide_of(problem)
    with pytest.raises(error, match=message):
        compare(problem, {"one": guide, "two": guide}, held_out=held_out(*problem.args))


def test_what_cannot_be_compared_is_refused(problem):
    guide = guide_of(problem)
    for guides in ({"one": guide}, [guide, guide]):
        with pytest.raises(ValueError, match="give at least two guides, by name"):
            compare(problem, guides)
    found = compare(problem, {"one": guide, "two": guide}, num_samples=4)
    with pytest.raises(ValueError, match="there is no 'RMSE' of 'one': the scores are"):
        found.score("RMSE", "one")


def test_held_out_observations_need_a_log_likelihood_each():
    def line(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(w.sum() * x, 0.5).to_event(1), obs=y)

    x = torch.linspace(-1, 1, 4)
    guides = {name: AutoNormal(line, init_loc_fn=pp.init_to_fan_in) for name in ("one", "other")}
    options = {"num_samples": 4, "num_predictive_samples": 2, "progress": False}
    with (
        pytest.warns(UserWarning, match="one log-likelihood together"),
        pytest.raises(ValueError, match=r"no log-likelihood each: .* pyro.plate\('data', N\)"),
    ):
        pp.compare(line, guides, x, x, held_out=(x, x), **options)
    with pytest.raises(ValueError, match="the model observes nothing with these arguments"):
        pp.compare(line, guides, x, x, held_out=(x,), **options)
