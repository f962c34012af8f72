"""The exported posterior has ArviZ's groups, and the model's and the guide's numbers in them."""

import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import brute_force_log_q_symmetrized, local_latents, normal, one_hidden_layer
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample

import pyro_perm as pp


NUM = 20


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
    return pp.to_arviz(model, guide, *args, num_samples=NUM, progress=False, **kwargs)


def draws(data, group, name):
    """The variable as a tensor, shape ``(draws, ...)``."""
    return torch.as_tensor(data[group][name].values[0])


@pytest.fixture
def small():
    """A net with four units, and its posterior."""
    problem = one_hidden_layer()
    guide = problem.guide(pp.Exact())
    return problem, guide, export(problem.model, guide, problem.args)


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


def test_attributes_name_the_estimator_the_guide_and_the_versions(small):
    problem, _, data = small
    assert data["sample_stats"].attrs["log_q_estimator"] == "Exact()"
    assert data.attrs["guide"] == "AutoSymmetrized"
    assert data.attrs["inference_library_version"] == pp.__version__
    assert data.attrs["seed"] == "0"
    base = export(problem.model, problem.base(), problem.args)
    assert base["sample_stats"].attrs["log_q_estimator"].startswith("none")


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

    data = export(model, AutoNormal(model), (y,))
    w, log_likelihood = draws(data, "posterior", "w"), draws(data, "log_likelihood", "y")
    expected = dist.Normal(w[:, 0], 1.0).log_prob(y[0])
    torch.testing.assert_close(log_likelihood, torch.stack([expected, 0 * expected], -1))
    assert set(data["log_likelihood"]) == set(data["posterior_predictive"]) == {"y"}
    joint = 3 * expected + (dist.Normal(0.0, 1.0).log_prob(w) - w.square()).sum(-1)
    torch.testing.assert_close(draws(data, "sample_stats", "lp"), joint)


def test_latent_sites_without_a_posterior_are_refused():
    def model():
        normal("w", 1)
        normal("v", 1)

    guide = AutoNormal(poutine.block(model, hide=["v"]))
    with pytest.raises(ValueError, match="guide draws no 'v'"):
        export(model, guide, ())


def test_arviz_opens_ranks_and_summarizes_the_files(small, tmp_path):
    problem, guide, _ = small
    posteriors = {}
    for name, posterior_guide in {"base": guide.base, "symmetrized": guide}.items():
        data = pp.to_arviz(problem.model, posterior_guide, *problem.args, progress=False)
        data.to_netcdf(tmp_path / f"{name}.nc")
        posteriors[name] = az.from_netcdf(tmp_path / f"{name}.nc")
        np.testing.assert_array_equal(posteriors[name]["posterior"]["w1"], data["posterior"]["w1"])
        assert posteriors[name].attrs["guide"] == data.attrs["guide"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Pareto", UserWarning)
        warnings.filterwarnings("ignore", "The inplace keyword in DataFrame")  # ArviZ 0.23's own
        assert np.isfinite(az.loo(posteriors["symmetrized"]).elpd_loo)
        assert set(az.compare(posteriors).index) == {"base", "symmetrized"}
    summary = az.summary(posteriors["symmetrized"], kind="stats")
    assert np.isfinite(summary["mean"]).all()


def test_arrays_reach_either_generation_in_its_own_form(monkeypatch):
    groups = {"posterior": {"w": np.zeros((1, 5, 2))}, "constant_data": {}}
    attributes = {"/": {"guide": "AutoNormal"}, "posterior": {"note": "one"}}
    old = assemble(groups, attributes)
    assert old.attrs["guide"] == "AutoNormal"
    assert old["posterior"].attrs["note"] == "one"
    assert old.groups() == ["posterior"]

    def from_dict(data, *, attrs):
        return data, attrs

    monkeypatch.setattr(az, "__version__", "1.3.0")
    monkeypatch.setattr(az, "from_dict", from_dict)
    assert assemble(groups, attributes) == ({"posterior": groups["posterior"]}, attributes)
