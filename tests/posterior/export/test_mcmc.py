"""MCMC runs are exported with their chains apart, and with what the model says of each draw."""

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from problems import normal, one_hidden_layer
from pyro.infer import HMC, MCMC, NUTS

import pyro_perm as pp

NUM_CHAINS, NUM = 2, 12

# Chains run one after the other: their order and the random numbers do not hang on the machine.
pytestmark = pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 1)
        yield


def sampled(model, args, step_size=0.05) -> MCMC:
    kernel = HMC(model, step_size=step_size, num_steps=3, adapt_step_size=False)
    mcmc = MCMC(
        kernel,
        num_samples=NUM,
        warmup_steps=5,
        num_chains=NUM_CHAINS,
        disable_progbar=True,
    )
    mcmc.run(*args)
    return mcmc


@pytest.fixture(scope="module")
def run(fresh_start, _one_cpu):
    problem = one_hidden_layer(units=2)
    mcmc = sampled(problem.model, problem.args)
    data = pp.to_arviz(
        problem.model, mcmc, *problem.args, symmetry=problem.symmetry(), progress=False
    )
    return problem, mcmc, data


def test_chains_stay_apart(run):
    problem, mcmc, data = run
    x, y = problem.args
    samples = mcmc.get_samples(group_by_chain=True)
    assert set(data["posterior"].data_vars) == set(samples)
    for site, values in samples.items():
        np.testing.assert_array_equal(data["posterior"][site], values)
    assert data["posterior"]["w1"].dims == ("chain", "draw", "hidden_unit", "w1_dim_1")
    hidden = torch.tanh(x @ samples["w1"].mT + samples["b1"][..., None, :])
    f = (hidden @ samples["w2"].mT + samples["b2"][..., None, :]).squeeze(-1)
    log_likelihood = dist.Normal(f, 0.5).log_prob(y)
    np.testing.assert_allclose(data["log_likelihood"]["y"], log_likelihood)
    prior = sum(dist.Normal(0.0, 1.0).log_prob(w).flatten(2).sum(2) for w in samples.values())
    np.testing.assert_allclose(data["sample_stats"]["lp"], log_likelihood.sum(2) + prior)
    assert data["posterior_predictive"]["y"].shape == (NUM_CHAINS, NUM, 12)
    assert data["prior"]["w1"].shape == (1, 500, 2, 2)
    assert data["prior_predictive"]["y"].shape == (1, 500, 12)


def test_attributes_name_the_sampler_and_no_estimator(run):
    _, mcmc, data = run
    rates = mcmc.diagnostics()["acceptance rate"]
    assert data["sample_stats"].attrs["acceptance_rate"] == list(rates.values())
    assert data.attrs["sampler"] == "HMC"
    assert data.attrs["log_order"] == pytest.approx(np.log(2))
    assert not {"guide", "estimator"} & set(data.attrs)
    assert "log_q" not in data["sample_stats"]
    assert "log_q_estimator" not in data["sample_stats"].attrs


def test_divergences_are_marked_where_they_happened():
    problem = one_hidden_layer(units=2)
    mcmc = sampled(problem.model, problem.args, step_size=0.24)
    data = pp.to_arviz(problem.model, mcmc, *problem.args, progress=False)
    diverging = data["sample_stats"]["diverging"].values
    assert diverging.shape == (NUM_CHAINS, NUM)
    assert diverging.any()
    divergences = mcmc.diagnostics()["divergences"]
    for chain in range(NUM_CHAINS):
        assert list(np.flatnonzero(diverging[chain])) == divergences[f"chain {chain}"]


@pytest.mark.slow
def test_file_keeps_the_chains(run, tmp_path):
    data = run[2]
    data.to_netcdf(tmp_path / "mcmc.nc")
    read = az.from_netcdf(tmp_path / "mcmc.nc")
    np.testing.assert_array_equal(read["posterior"]["w1"], data["posterior"]["w1"])
    np.testing.assert_array_equal(
        read["sample_stats"]["diverging"], data["sample_stats"]["diverging"]
    )
    np.testing.assert_array_equal(
        read["sample_stats"].attrs["acceptance_rate"], data["sample_stats"].attrs["acceptance_rate"]
    )
    assert az.summary(read, var_names=["b2"])["r_hat"].notna().all()


def test_mcmc_without_draws_or_with_too_many_options_is_refused(run):
    problem, mcmc, _ = run
    with pytest.raises(ValueError, match="leave out num_samples="):
        pp.to_arviz(problem.model, mcmc, *problem.args, num_samples=5)
    with pytest.raises(ValueError, match=r"call mcmc\.run"):
        pp.to_arviz(problem.model, MCMC(NUTS(problem.model), num_samples=1), *problem.args)


def test_latent_sites_without_draws_are_refused(run):
    problem, mcmc, _ = run

    def larger(x, y):
        normal("more", 1)
        problem.model(x, y)

    with pytest.raises(ValueError, match="the MCMC draws no 'more'"):
        pp.to_arviz(larger, mcmc, *problem.args)
