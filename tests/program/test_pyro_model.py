"""A Pyro model as a program: latent sites, priors and likelihood apart, enumeration, exclusions."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import normal
from problems import enumerated_mixture
from pyro import poutine
from torch import Tensor

from pyro_perm.program.call import Call
from pyro_perm.program.opening import open_program
from pyro_perm.program.program import SUMMED_OUT

X = torch.linspace(-1, 1, 4).double()


def regression(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(0.0, scale).expand([3]).to_event(1))
    pyro.factor("penalty", -(w**2).sum())
    with pyro.plate("data", len(x)), poutine.scale(scale=2.0):
        pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)


def test_priors_and_likelihood_are_told_apart_and_sum_to_the_log_joint() -> None:
    values = {"scale": torch.tensor(0.5), "w": torch.tensor([0.3, -1.0, 2.0])}
    with open_program(Call(regression, (X,))) as program:
        run = program.run(values)
        assert {name for name, factor in run.factors.items() if factor.is_prior} == {"scale", "w"}
        total = sum(log_prob.sum() for log_prob in run.log_probs().values())
    trace = poutine.trace(poutine.condition(regression, values)).get_trace(X)
    assert total == pytest.approx(float(trace.log_prob_sum()), rel=1e-12)


def test_sites_without_a_value_keep_the_one_of_the_first_run() -> None:
    with open_program(Call(regression, (X,))) as program:
        run = program.run({"w": torch.zeros(3)})
        assert torch.equal(run.factors["scale"].value, program.latents["scale"].value)


def test_a_prior_is_a_function_of_its_site_alone() -> None:
    with open_program(Call(regression, (X,))) as program:
        prior = program.run({"scale": torch.tensor(2.0)}).factors["w"]
        values = torch.randn(5, 3)
        expected = dist.Normal(0.0, 2.0).log_prob(values).sum(-1)
        assert torch.allclose(prior.log_density(values), expected)


def test_enumerated_variables_are_summed_out_and_the_priors_stay_apart() -> None:
    weights, loc = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-1.0, 0.0, 1.0])
    with open_program(Call(enumerated_mixture, (X,))) as program:
        assert program.latents.keys() == {"weights", "loc"}
        log_probs = program.run({"weights": weights, "loc": loc}).log_probs()
    assert log_probs.keys() == {"weights", "loc", SUMMED_OUT}
    assert float(log_probs["weights"]) == pytest.approx(math.log(2))
    marginal = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.0))
    assert float(log_probs[SUMMED_OUT]) == pytest.approx(float(marginal.log_prob(X).sum()))


def test_what_cannot_be_permuted_is_named() -> None:
    def model(x: Tensor) -> None:
        normal("seen"), normal("hidden")
        with pyro.plate("data", len(x), subsample_size=2):
            pyro.sample("local", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])

    with open_program(Call(poutine.block(model, hide=["hidden"]), (X,))) as program:
        found = {site: why.split(";")[0] for site, why in program.exclusions.items()}
    assert found == {
        "hidden": "the site is hidden from the guide by poutine.block",
        "local": "the site lies in the subsampled plate 'data'",
        "z": "the site is discrete",
    }


def test_latent_sites_know_their_line() -> None:
    with open_program(Call(regression, (X,))) as program:
        first = regression.__code__.co_firstlineno
        assert program.latents["scale"].source == f"test_pyro_model.py:{first + 1}"
        assert program.latents["w"].source == f"test_pyro_model.py:{first + 2}"


def test_a_run_repeats_the_models_own_randomness() -> None:
    def noisy(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(normal("w") + torch.randn(()), 1.0), obs=x[0])

    with open_program(Call(noisy, (X,))) as program:
        runs = [program.run({}).log_probs() for _ in range(2)]
    assert torch.equal(runs[0]["x"], runs[1]["x"])
