"""The exported posterior has ArviZ's groups, and the model's and the guide's numbers in them."""

import arviz as az
import arviz_checks
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import on_each, slow
from problems import (
    PROBLEMS,
    SIGNED_PROBLEMS,
    brute_force_log_q_symmetrized,
    local_latents,
    normal,
    one_hidden_layer,
)
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule, PyroSample
from torch.distributions import biject_to

import pyro_perm as pp
from pyro_perm.program.call import Call
from pyro_perm.program.full_data import survey

NUM = 20

pytestmark = arviz_checks.pytestmark


class LinearRegression(PyroModule):
    """An ordinary Pyro module, which no vectorized path can run."""

    def __init__(self):
        super().__init__()
        self.fc = PyroModule[torch.nn.Linear](2, 1, bias=False)
        self.fc.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

    def forward(self, x, y=None):
        mean = self.fc(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def export(model, guide, args, **kwargs):
    options = {"num_samples": NUM, "num_prior_samples": NUM, "progress": False}
    return pp.to_arviz(model, guide, *args, **options | kwargs)


def draws(data, group, name):
    """The variable as a tensor, shape ``(draws, ...)``."""
    return torch.as_tensor(data[group][name].values[0])


def density_at(guide, args, values):
    """Log-density of a guide, and what else of it there is in a trace, at given values."""
    full = survey(Call(guide, args))
    return full.log_joint(full.draw(values).terms).detach()


def near(output):
    """Options of a narrow guide, whose outputs are all near one value."""
    values = {"w2": torch.zeros(1, 4), "b2": torch.full((1,), output)}
    start = init_to_value(values=values, fallback=pp.init_to_fan_in)
    return {"init_scale": 0.02, "init_loc_fn": start}


@pytest.fixture(scope="module")
def small(fresh_start):
    """A net with four units, and its posterior."""
    problem = one_hidden_layer()
    guide = problem.guide(pp.Exact())
    return problem, guide, export(problem.model, guide, problem.args, num_prior_samples=500)


def test_groups_hold_the_models_sites_alone(small):
    problem, _, data = small
    assert set(data["posterior"]) == {"w1", "b1", "w2", "b2"}
    for group in ("posterior_predictive", "log_likelihood", "observed_data"):
        assert set(data[group]) == {"y"}
    assert set(data["constant_data"]) == {"x"}
    assert data["posterior"]["w1"].shape == (1, NUM, 4, 2)
    for group in ("posterior_predictive", "log_likelihood"):
        assert data[group]["y"].shape == (1, NUM, 12)
    np.testing.assert_array_equal(data["constant_data"]["x"], problem.args[0])
    np.testing.assert_array_equal(data["observed_data"]["y"], problem.args[1])


def test_log_likelihood_and_log_joint_are_those_of_the_model(small):
    problem, _, data = small
    x, y = problem.args
    w1, b1, w2, b2 = (draws(data, "posterior", site) for site in ("w1", "b1", "w2", "b2"))
    f = torch.tanh(x @ w1.mT + b1[:, None]) @ w2.mT + b2[:, None]
    log_likelihood = dist.Normal(f.squeeze(-1), 0.5).log_prob(y)
    torch.testing.assert_close(draws(data, "log_likelihood", "y"), log_likelihood)
    prior = sum(dist.Normal(0.0, 1.0).log_prob(w).flatten(1).sum(1) for w in (w1, b1, w2, b2))
    torch.testing.assert_close(draws(data, "sample_stats", "lp"), log_likelihood.sum(1) + prior)


def test_log_q_is_the_symmetrized_density_of_the_exported_draws(small):
    _, guide, data = small
    rest = dist.Normal(guide.base.locs.b2, guide.base.scales.b2)
    parameters = [
        {site: getattr(tensors, site) for site in guide.symmetry.sites}
        for tensors in (guide.base.locs, guide.base.scales)
    ]
    for i, log_q in enumerate(draws(data, "sample_stats", "log_q")):
        values = {site: draws(data, "posterior", site)[i] for site in guide.symmetry.sites}
        expected = brute_force_log_q_symmetrized(guide.symmetry, *parameters, values)
        expected = expected + rest.log_prob(draws(data, "posterior", "b2")[i]).sum()
        torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-8)


def test_prior_groups_are_draws_of_the_model_itself(small):
    problem, guide, data = small
    assert set(data["prior"]) == set(data["posterior"])
    assert set(data["prior_predictive"]) == {"y"}
    assert data["prior"]["w1"].shape == (1, 500, 4, 2)
    assert data["prior_predictive"]["y"].shape == (1, 500, 12)
    for site in data["prior"]:
        assert abs(data["prior"][site].mean()) < 5 / np.sqrt(data["prior"][site].size)
        np.testing.assert_allclose(data["prior"][site].std(), 1, rtol=0.15)
    x = problem.args[0]
    w1, b1, w2, b2 = (draws(data, "prior", site) for site in ("w1", "b1", "w2", "b2"))
    f = (torch.tanh(x @ w1.mT + b1[:, None]) @ w2.mT + b2[:, None]).squeeze(-1)
    noise = draws(data, "prior_predictive", "y") - f
    assert (noise.std() - 0.5).abs() < 0.02
    without = export(problem.model, guide, problem.args, num_prior_samples=0)
    assert not {"prior", "prior_predictive"} & set(without)


def test_attributes_name_the_guide_the_estimator_and_the_versions(small):
    problem, _, data = small
    assert data["sample_stats"].attrs["log_q_estimator"] == "Exact()"
    assert data.attrs["guide"] == "AutoSymmetrized"
    assert data.attrs["inference_library_version"] == pp.__version__
    assert data.attrs["pyro_version"] == pyro.__version__
    assert data.attrs["torch_version"] == torch.__version__
    assert data.attrs["arviz_version"] == az.__version__
    assert data.attrs["log_order"] == pytest.approx(np.log(24))
    base = export(problem.model, problem.base(), problem.args)
    assert base["sample_stats"].attrs["log_q_estimator"].startswith("none")
    assert "log_order" not in base.attrs


def test_attributes_hold_the_certified_bounds(small, tmp_path):
    problem, guide, _ = small
    elbo = pp.symmetrized_elbo(problem.model, guide, *problem.args, num_samples=4, progress=False)
    export(problem.model, guide, problem.args, elbo=elbo).to_netcdf(tmp_path / "posterior.nc")
    attributes = az.from_netcdf(tmp_path / "posterior.nc").attrs
    for field in ("lower", "upper", "lower_standard_error", "upper_standard_error", "base"):
        assert attributes[f"elbo_{field}"] == getattr(elbo, field)
    assert attributes["mutual_information_lower"] == elbo.mutual_information.lower
    assert attributes["mutual_information_lower_method"] == "exact"
    assert attributes["log_order"] == elbo.log_order


def test_seed_repeats_the_draws_and_has_no_side_effect(small):
    problem, guide, _ = small
    state = torch.get_rng_state()
    first = export(problem.model, guide, problem.args, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    unseeded = export(problem.model, guide, problem.args)
    again = [
        export(problem.model, guide, problem.args, seed=int(d.attrs["seed"]))
        for d in (first, unseeded)
    ]
    assert first.attrs["seed"] == 3
    for data, repeated in zip((first, unseeded), again, strict=True):
        for group in ("posterior", "posterior_predictive", "prior_predictive"):
            for name in data[group]:
                np.testing.assert_array_equal(repeated[group][name], data[group][name])
    assert not np.array_equal(first["posterior"]["w1"], unseeded["posterior"]["w1"])


@pytest.mark.parametrize("draws_at_once", [*slow(1), 64])
@on_each([*PROBLEMS, *SIGNED_PROBLEMS])
def test_log_q_is_the_density_of_the_guide_at_each_draw(problem, draws_at_once):
    guide = problem.guide(permute=False)
    options = {"num_samples": 4, "num_prior_samples": 0, "draws_at_once": draws_at_once}
    data = export(problem.model, guide, problem.args, **options)
    supports = {n: s["fn"].support for n, s in guide.prototype_trace.iter_stochastic_nodes()}
    posterior = {name: draws(data, "posterior", name) for name in supports}
    for i, log_q in enumerate(draws(data, "sample_stats", "log_q")):
        values = {
            f"{name}_unconstrained": biject_to(support).inv(posterior[name][i])
            for name, support in supports.items()
        }
        torch.testing.assert_close(log_q, density_at(guide, problem.args, values))


@pytest.mark.parametrize("draws_at_once", [*slow(1), 64])
def test_symmetrized_draws_are_those_of_the_base_in_every_order(draws_at_once):
    problem = one_hidden_layer(3)
    guide = problem.guide(init_scale=0.05)
    options = {"num_samples": 300, "num_prior_samples": 0, "draws_at_once": draws_at_once}
    data = export(problem.model, guide, problem.args, **options)
    samples = {site: draws(data, "posterior", site) for site in data["posterior"]}
    locs = {site: getattr(guide.base.locs, site).detach() for site in samples}
    aligned = pp.align(samples, guide.symmetry, locs)
    _, counts = aligned.permutations["hidden"].unique(dim=0, return_counts=True)
    assert (counts - 50).abs().max() < 5 * (300 * 5 / 36) ** 0.5
    assert len(counts) == 6
    for site, loc in locs.items():
        errors = (aligned.samples[site] - loc) / 0.05
        torch.testing.assert_close(errors.mean(0), 0 * loc, rtol=0, atol=5 / 300**0.5)
        torch.testing.assert_close(errors.std(0), 1 + 0 * loc, rtol=0, atol=5 / 600**0.5)


@pytest.mark.parametrize("kind", [AutoMultivariateNormal, AutoDiagonalNormal])
def test_vectors_that_a_guide_draws_keep_their_density(kind):
    problem = one_hidden_layer(3)
    base = kind(problem.model, init_scale=0.3, init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(base, problem.symmetry(), estimator=pp.Exact(), permute=False)
    data = export(problem.model, guide, problem.args, num_samples=4, num_prior_samples=0)
    sites = [draws(data, "posterior", site) for site in ("w1", "b1", "w2", "b2")]
    vectors = torch.cat([values.flatten(1) for values in sites], -1)
    for vector, log_q in zip(vectors, draws(data, "sample_stats", "log_q"), strict=True):
        values = {f"_{kind.__name__}_latent": vector}
        torch.testing.assert_close(log_q, density_at(guide, problem.args, values))


def test_guides_that_do_not_permute_keep_their_order():
    problem = one_hidden_layer(3)
    guide = problem.guide(permute=False, init_scale=0.01)
    data = export(problem.model, guide, problem.args)
    w1 = draws(data, "posterior", "w1")
    assert (w1 - guide.base.locs.w1).abs().max() < 0.1


def test_predictive_draws_have_the_models_noise():
    model, (x, y) = LinearRegression(), one_hidden_layer().args
    guide = AutoNormal(model, init_scale=1e-4)
    data = pp.to_arviz(model, guide, x, y, num_samples=2000, progress=False)
    residuals = draws(data, "posterior_predictive", "y") - x @ guide.locs.fc.weight.T.detach()[:, 0]
    assert residuals.mean().abs() < 0.02
    assert (residuals.std() - 0.5).abs() < 0.01


def test_ordinary_module_exports_its_own_density():
    model, args = LinearRegression(), one_hidden_layer().args
    guide = AutoNormal(model)
    data = export(model, guide, args)
    weight = draws(data, "posterior", "fc.weight")
    log_q = dist.Normal(guide.locs.fc.weight, guide.scales.fc.weight).log_prob(weight)
    torch.testing.assert_close(draws(data, "sample_stats", "log_q"), log_q.flatten(1).sum(1))


def test_subsampled_model_exports_all_of_its_data():
    problem = local_latents()
    data = export(problem.model, problem.guide(pp.Exact()), problem.args)
    x, y = problem.args
    w1, w2, shift = (draws(data, "posterior", site) for site in ("w1", "w2", "shift"))
    assert shift.shape == (NUM, 10)
    f = (torch.tanh(x @ w1.mT) @ w2.mT).squeeze(-1) + shift
    log_likelihood = dist.Normal(f, 0.5).log_prob(y)
    torch.testing.assert_close(draws(data, "log_likelihood", "y"), log_likelihood)
    prior = sum(dist.Normal(0.0, 1.0).log_prob(w).flatten(1).sum(1) for w in (w1, w2, shift))
    torch.testing.assert_close(draws(data, "sample_stats", "lp"), log_likelihood.sum(1) + prior)
    trace = poutine.trace(problem.model).get_trace(*problem.args)
    assert trace.nodes["shift"]["value"].shape == (5,)  # and subsamples again afterwards


def test_scale_is_left_out_of_the_log_likelihood_and_masked_data_count_zero():
    y = torch.tensor([0.3, float("nan")])

    def model(y):
        w = normal("w", 1)
        with pyro.plate("data", 2), poutine.scale(scale=3.0), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(w, 1.0, validate_args=False), obs=y)
        pyro.factor("penalty", -w.square().sum())
        pyro.deterministic("twice", 2 * w)

    with pytest.warns(UserWarning, match="'penalty' is part of lp, but not of log_likelihood"):
        data = export(model, AutoNormal(model), (y,))
    w, log_likelihood = draws(data, "posterior", "w"), draws(data, "log_likelihood", "y")
    expected = dist.Normal(w[:, 0], 1.0).log_prob(y[0])
    torch.testing.assert_close(log_likelihood, torch.stack([expected, 0 * expected], -1))
    assert set(data["log_likelihood"]) == set(data["posterior_predictive"]) == {"y"}
    joint = 3 * expected + (dist.Normal(0.0, 1.0).log_prob(w) - w.square()).sum(-1)
    torch.testing.assert_close(draws(data, "sample_stats", "lp"), joint)


def test_all_tensor_arguments_but_the_data_are_constant_data():
    def model(x, *more, y, **options):
        w = normal("w", 1)
        with pyro.plate("data", len(y)):
            likelihood = dist.Normal(w + x + more[0], options["scale"], validate_args=False)
            pyro.sample("y", likelihood.mask(~y.isnan()), obs=y)

    y = torch.tensor([1.0, float("nan"), 2.0])
    args = (torch.ones(3), torch.arange(3), torch.arange(3) + 1, "no tensor")
    data = pp.to_arviz(
        model,
        AutoNormal(model),
        *args,
        y=y,
        scale=torch.tensor(2.0),
        num_samples=2,
        progress=False,
    )
    assert set(data["constant_data"].data_vars) == {"x", "more_0", "more_1", "scale"}
    np.testing.assert_array_equal(data["constant_data"]["more_1"], [1, 2, 3])


def test_model_without_latent_sites_is_refused():
    def model(y):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match="the model has no latent site"):
        export(model, lambda y: None, (torch.tensor(0.0),))


def test_latent_sites_without_a_posterior_are_refused():
    def model():
        normal("w", 1)
        normal("v", 1)

    guide = AutoNormal(poutine.block(model, hide=["v"]))
    guide()
    with pytest.raises(ValueError, match="guide draws no 'v'"):
        export(model, guide, ())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be an int of at least 1, but is 0"),
        ({"num_prior_samples": -1}, ValueError, "num_prior_samples must be an int of at least 0"),
        ({"draws_at_once": 0}, ValueError, "draws_at_once must be an int of at least 1"),
        ({"seed": -1}, ValueError, "seed must be an int from 0"),
        ({"elbo": -3.0}, TypeError, "elbo must be what symmetrized_elbo returns, but is -3.0"),
        ({"symmetry": {"hidden": {"w1": 0}}}, TypeError, "symmetry must be a PermutationSymmetry"),
        ({"dims": {"v": ["a"]}}, ValueError, "dims names 'v'"),
        ({"coords": {"hidden_unit": [1]}}, ValueError, "1 entries for dimension 'hidden_unit'"),
    ],
)
def test_bad_arguments_are_refused(small, options, error, message):
    problem, guide, _ = small
    with pytest.raises(error, match=message):
        pp.to_arviz(problem.model, guide, *problem.args, **{"num_samples": 1} | options)


def test_progress_is_shown_by_default(small, capsys):
    problem, guide, _ = small
    pp.to_arviz(problem.model, guide, *problem.args, num_samples=2, num_prior_samples=2)
    shown = capsys.readouterr().err
    for step in ("posterior draws", "log q^G", "posterior predictive", "prior draws"):
        assert step in shown
    export(problem.model, guide, problem.args, progress=False)
    assert not capsys.readouterr().err


def test_what_is_no_guide_is_refused():
    with pytest.raises(TypeError, match="guide must be a guide or an MCMC, but is a dict"):
        export(one_hidden_layer().model, {}, one_hidden_layer().args)


@pytest.mark.slow
def test_arviz_opens_ranks_and_plots_the_files(tmp_path):
    pyro.settings.set(module_local_params=True)  # Two guides with parameters of their own.
    problem = one_hidden_layer()
    guides = {
        "better": problem.guide(pp.Exact(), **near(0.0)),
        "worse": problem.base(**near(2.0)),
    }
    for name, guide in guides.items():
        data = pp.to_arviz(problem.model, guide, *problem.args, num_samples=300, progress=False)
        data.to_netcdf(tmp_path / f"{name}.nc")
    better, worse = (az.from_netcdf(tmp_path / f"{name}.nc") for name in guides)
    arviz_checks.check_ranking(better, worse)
    arviz_checks.check_summary(better, ["w1", "b1"])
    arviz_checks.check_plots(better, ["b1", "w2"], {"hidden_unit": [0, 2], "w2_dim_0": [0]})


def test_arviz_warns_of_high_pareto_k():
    problem = one_hidden_layer()
    data = export(problem.model, problem.base(), problem.args, num_samples=100)
    with pytest.warns(UserWarning, match="parameter of Pareto distribution"):
        az.loo(data)
