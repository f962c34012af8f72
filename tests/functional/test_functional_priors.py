"""Losses without traces read the priors that a step's arguments set."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp


def test_priors_of_rescaled_sites_follow_numbers_among_the_arguments():
    def model(x, y, scale):
        w1 = pyro.sample("w1", dist.Normal(0.0, scale).expand([3, 2]).to_event(2))
        w2 = pyro.sample("w2", dist.Normal(0.0, scale).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(torch.relu(x @ w1.mT) @ w2, 1.0).to_event(1), obs=y)

    x, y = torch.randn(5, 2), torch.randn(5)
    symmetry = pp.PermutationSymmetry(
        {"units": {"w1": pp.Axis(0, scale=1), "w2": pp.Axis(0, scale=-1)}}
    )
    losses = []
    for first in (1.0, 3.0):  # What the first call saw does not matter.
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in), symmetry)
        elbo = pp.FunctionalSymmetrized_ELBO(num_particles=4, vectorize_particles=True)
        elbo.loss(model, guide, x, y, first)
        pyro.set_rng_seed(1)
        losses.append(elbo.loss(model, guide, x, y, 3.0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
