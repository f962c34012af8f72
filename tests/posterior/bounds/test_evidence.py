"""The evidence estimate where the evidence is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import TwoWeightNets, local_latents
from torch.distributions import MultivariateNormal

import pyro_perm as pp

SHORT = {"num_particles": 80, "num_temperatures": 60, "num_leapfrog_steps": 5, "progress": False}


def require_near(evidence, exact):
    assert abs(evidence.log_evidence - exact) < 4 * evidence.standard_error
    assert evidence.standard_error < 0.5


def test_conjugate_linear_model():
    x = torch.randn(20, 3)
    y = x @ torch.tensor([1.0, -1.0, 0.5]) + 0.3 * torch.randn(20)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    covariance = 0.3**2 * torch.eye(20) + 2.0**2 * x @ x.T
    exact = MultivariateNormal(torch.zeros(20), covariance).log_prob(y).item()
    evidence = pp.log_evidence(model, x, y, **SHORT)
    require_near(evidence, exact)
    assert evidence.log_weights.shape == (80,)
    mean = evidence.log_weights.logsumexp(0) - math.log(80)
    assert evidence.log_evidence == pytest.approx(mean.item())


@pytest.mark.slow
def test_constrained_sites_and_factors():
    y = torch.tensor([0.5, -1.0, 2.0])

    def model():
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        pyro.factor("tilt", -noise)
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(0.0, noise), obs=y)

    u = torch.linspace(-8, 8, 20001)  # log of the noise
    log_joint = dist.Normal(0.0, 1.0).log_prob(u) - u.exp()
    log_joint = log_joint + dist.Normal(0.0, u.exp()[:, None]).log_prob(y).sum(-1)
    exact = (log_joint.logsumexp(0) + math.log(16 / 20000)).item()
    require_near(pp.log_evidence(model, **SHORT), exact)


@pytest.mark.slow
def test_networks_whose_posterior_has_equivalent_modes():
    nets = TwoWeightNets(alphas=(0.2,))
    grid = torch.cartesian_prod(*[torch.linspace(-5, 5, 251)] * 2)
    f = torch.relu(grid.unsqueeze(-1) * nets.x).sum(-2)
    log_joint = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1)
    log_joint = log_joint + dist.Normal(f, 5.0).log_prob(0.2 * nets.x.abs()).sum(-1)
    exact = (log_joint.logsumexp(0) + 2 * math.log(10 / 250)).item()
    require_near(pp.log_evidence(nets.model, **SHORT), exact)


@pytest.mark.slow
def test_subsampled_data_count_in_full():
    problem = local_latents()
    x, y = problem.args

    def model(x, y, size):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("y", dist.Normal(x[index] @ w, 0.5), obs=y[index])

    covariance = 0.25 * torch.eye(10) + x @ x.T
    exact = MultivariateNormal(torch.zeros(10), covariance).log_prob(y).item()
    require_near(pp.log_evidence(model, x, y, 5, **SHORT), exact)


def test_models_without_a_density_to_anneal_are_refused():
    def discrete():
        pyro.sample("z", dist.Bernoulli(0.5))

    def scaled():
        with pyro.poutine.scale(scale=2.0):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="site 'z' is discrete: marginalize it"):
        pp.log_evidence(discrete, progress=False)
    with pytest.raises(ValueError, match="site 'w' has a scaled density"):
        pp.log_evidence(scaled, progress=False)
    with pytest.raises(ValueError, match="num_particles=1 must be at least 2"):
        pp.log_evidence(TwoWeightNets().model, num_particles=1)
