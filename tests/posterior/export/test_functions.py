"""Sites that are functions of others are exported as such, and are no observations."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.infer.reparam import LocScaleReparam, NeuTraReparam, TransformReparam

import pyro_perm as pp

X, Y = torch.randn(8, 2).double(), torch.randn(8).double()


def centred(x, y=None):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(2, 3), tau).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        f = pyro.deterministic("f", torch.tanh(x @ w1) @ w2, event_dim=0)
        pyro.sample("y", dist.Normal(f, 0.1), obs=y)


def non_centred(reparam):
    return poutine.reparam(centred, config={"w1": reparam})


def export(model, guide, *args, **options):
    counts = {"num_samples": 20, "num_prior_samples": 10, "progress": False}
    return pp.to_arviz(model, guide, *args, **counts | options)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.parametrize("symmetrized", [True, False])
def test_non_centred_weights_are_exported_as_the_weights_that_they_are(symmetrized):
    model = non_centred(LocScaleReparam(0.0))
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(guide) if symmetrized else guide
    data = export(model, guide, X, Y)
    for dataset in ("observed_data", "log_likelihood", "posterior_predictive"):
        assert set(data[dataset]) == {"y"}
    assert set(data["posterior"]) == set(data["prior"]) == {"tau", "w1_decentered", "w2", "w1", "f"}
    values = {name: data["posterior"][name].values[0] for name in data["posterior"]}
    expected = values["tau"][:, None, None] * values["w1_decentered"]
    np.testing.assert_allclose(values["w1"], expected)
    f = (np.tanh(X.numpy() @ values["w1"]) @ values["w2"][..., None])[..., 0]
    np.testing.assert_allclose(values["f"], f)
    assert data["posterior"]["f"].dims == ("chain", "draw", "data")
    log_likelihood = dist.Normal(torch.as_tensor(f), 0.1).log_prob(Y)
    np.testing.assert_allclose(data["log_likelihood"]["y"][0], log_likelihood)
    assert az.loo(data).n_data_points == len(Y)


@pytest.mark.parametrize("with_data", [True, False])
def test_the_observed_site_of_a_reparametrized_model_is_found(with_data):
    model = non_centred(LocScaleReparam(0.0))
    guide = AutoNormal(model)
    guide(X, Y)
    args = (X, Y) if with_data else (X,)
    found = pp.predict(model, guide, *args, num_samples=5, progress=False)
    assert found.draws.shape == (5, 8)


def test_transformed_sites_keep_the_joint():
    def plain():
        v = pyro.sample("v", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(v.sum(), 1.0), obs=torch.tensor(0.5))

    model = poutine.reparam(plain, config={"v": TransformReparam()})
    data = export(model, AutoNormal(model))
    base = torch.as_tensor(data["posterior"]["v_base"].values[0])
    np.testing.assert_allclose(data["posterior"]["v"][0], base.exp())
    lp = dist.Normal(0.0, 1.0).log_prob(base).sum(-1)
    lp = lp + dist.Normal(base.exp().sum(-1), 1.0).log_prob(torch.tensor(0.5))
    np.testing.assert_allclose(data["sample_stats"]["lp"][0], lp)
    loss = pp.negative_log_likelihood(model)
    expected = -dist.Normal(base[0].exp().sum(), 1.0).log_prob(torch.tensor(0.5))
    torch.testing.assert_close(loss({"v_base": base[0]}), expected)


def test_mcmc_through_a_trained_guide_exports_both_spaces():
    def plain():
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=torch.tensor(0.5))

    guide = AutoDiagonalNormal(plain, init_scale=0.5)
    guide()
    model = NeuTraReparam(guide).reparam(plain)
    mcmc = MCMC(HMC(model, step_size=0.1, num_steps=2), 6, 2, disable_progbar=True)
    mcmc.run()
    data = pp.to_arviz(model, mcmc, num_prior_samples=0, progress=False)
    assert "w" in data["posterior"] and set(data["observed_data"]) == {"y"}


def test_functions_of_what_is_summed_out_are_named_and_left_out():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.deterministic("gap", mu[..., 1] - mu[..., 0])
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.deterministic("centre", mu[z.long()], event_dim=0)
            pyro.sample("y", dist.Normal(mu[z.long()], 1.0), obs=y)

    guide = AutoNormal(poutine.block(model, hide=["z"]))
    with pytest.warns(UserWarning, match="site 'centre' is a function of what is summed out"):
        data = export(model, guide, Y)
    assert set(data["posterior"]) == set(data["prior"]) == {"mu", "gap"}
    mu = data["posterior"]["mu"].values
    np.testing.assert_allclose(data["posterior"]["gap"], mu[..., 1] - mu[..., 0])
