"""What is passed to training by mistake is named, with what to pass in its place."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_perm as pp

X = torch.linspace(-1, 1, 8, dtype=torch.float64)


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(X), subsample=x):
        pyro.sample("y", dist.Normal(w.sum() * x, 0.3), obs=y)


def new_guide():
    return AutoNormal(model, init_loc_fn=pp.init_to_fan_in)


SYMMETRY = pp.PermutationSymmetry({"units": {"w": 0}})

WRONG = {
    "guide for model": (
        lambda: {"model": new_guide(), "guide": model},
        r"the model is a guide, an AutoNormal: .* fit\(model, guide, data\)",
    ),
    "symmetrized guide for model": (
        lambda: {"model": pp.AutoSymmetrized(new_guide(), SYMMETRY), "guide": model},
        "the model is a guide, an AutoSymmetrized",
    ),
    "class of guide": (
        lambda: {"guide": AutoNormal},
        r"the guide is the class AutoNormal: give an instance, AutoNormal\(model\)",
    ),
    "class of loss": (
        lambda: {"elbo": pp.TraceSymmetrized_ELBO},
        r"elbo is the class TraceSymmetrized_ELBO: give an instance, elbo=TraceSymmetrized_ELBO\(",
    ),
    "no loss": (lambda: {"elbo": "Trace_ELBO"}, r"must be an ELBO .* but is a str"),
    "weight for schedule": (
        lambda: {"kl_weight": 0.5},
        r"is a schedule, .* linear_warm_up\(1000\), but is 0.5: lambda step: 0.5",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_arguments_of_another_kind(wrong):
    options, message = WRONG[wrong]
    arguments = {"model": model, "guide": new_guide(), "data": (X, X), **options()}
    with pytest.raises(TypeError, match=message):
        pp.fit(**arguments, steps=1, progress=False)


def test_batches_of_a_network_without_the_number_of_all_data():
    network = nn.Linear(1, 1).double()
    bayesian = pp.bayesian(network, likelihood=pp.likelihoods.gaussian(0.3))
    data = X[:, None], X[:, None]
    with pytest.warns(UserWarning, match=r"Tell it .*: pp.bayesian\(..., dataset_size=8\)"):
        pp.fit(bayesian, AutoNormal(bayesian), data, steps=1, batch_size=4, progress=False)
