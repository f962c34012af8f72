"""Probabilistic models with local, discrete and hierarchical variables, and their axes."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from examples.bayesian import example, normal
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor


@example("weights[-1] loc[-2] scale[-1]")
def gaussian_mixture() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        loc = normal("loc", 3, 2)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
        components = dist.Normal(loc, scale[:, None]).to_event(1)
        with pyro.plate("data", len(x)):
            mixture = dist.MixtureSameFamily(dist.Categorical(weights), components)
            pyro.sample("x", mixture, obs=x)

    return model, torch.randn(5, 2)


@example("weights[-1] loc[-2] scale[-1]")
def gaussian_mixture_enumerated() -> tuple[Any, ...]:
    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z][..., None]).to_event(1), obs=x)

    return model, torch.randn(5, 2)


@example()
def gaussian_mixture_ordered_weights() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        mixture = dist.MixtureSameFamily(
            dist.Categorical(weights), dist.Normal(normal("loc", 3), 1.0)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", mixture, obs=x)

    return model, torch.randn(5)


@example("transition[-2] transition[-1] initial[-1] loc[-1]")
def hidden_markov_enumerated() -> tuple[Any, ...]:
    @config_enumerate
    def model(y: Tensor) -> None:
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
        initial = pyro.sample("initial", dist.Dirichlet(torch.ones(3)))
        loc, z = normal("loc", 3), None
        for t in pyro.markov(range(len(y))):
            probs = initial if z is None else Vindex(transition)[z]
            z = pyro.sample(f"z{t}", dist.Categorical(probs))
            pyro.sample(f"y{t}", dist.Normal(loc[z], 1.0), obs=y[t])

    return model, torch.randn(4)


@example("transition[-2] transition[-1] initial[-1] loc[-1]")
def hidden_markov_marginal() -> tuple[Any, ...]:
    def model(y: Tensor) -> None:
        transition = pyro.sample("transition", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
        initial = pyro.sample("initial", dist.Dirichlet(torch.ones(3)))
        emission = dist.Normal(normal("loc", 3), 1.0)
        hmm = dist.DiscreteHMM(initial.log(), transition.log(), emission, duration=len(y))
        pyro.sample("y", hmm, obs=y)

    return model, torch.randn(6)


@example("loading[-1] z[-1]")
def factor_analysis() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        loading = normal("loading", 4, 3)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            pyro.sample("x", dist.Normal(z @ loading.T, 1.0).to_event(1), obs=x)

    return model, torch.randn(5, 4)


@example("loading[-1]")
def factor_analysis_marginal() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        loading = normal("loading", 4, 3)
        covariance = loading @ loading.T + torch.eye(4)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(4), covariance), obs=x)

    return model, torch.randn(5, 4)


@example("tau[-1] w1[-1] w2[-1]")
def hierarchical_prior() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        tau = pyro.sample("tau", dist.HalfCauchy(torch.ones(5)).to_event(1))
        w1 = pyro.sample("w1", dist.Normal(torch.zeros(3, 5), tau).to_event(2))
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ normal("w2", 5), 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example("w1[-1:0..2] w2[-1:0..2]", "w1[-1:3,5] w2[-1:3,5]")
def colours() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        scale = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 2.0])
        w1 = pyro.sample("w1", dist.Normal(torch.zeros(3, 6), scale).to_event(2))
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ normal("w2", 6), 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example("w1[-1] w2[-1]")
def exchangeable_covariance() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        w1 = normal("w1", 3, 4)
        w2 = pyro.sample("w2", dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 0.3))
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example("w1[-1:0..1] w2[-1:0..1]", "w1[-1:2..3] w2[-1:2..3]")
def covariance_of_two_kinds() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        block = torch.ones(2, 2) * 0.5
        covariance = torch.eye(4) + torch.block_diag(block, 2 * block)
        w2 = pyro.sample("w2", dist.MultivariateNormal(torch.zeros(4), covariance))
        h = torch.tanh(x @ normal("w1", 3, 4))
        pyro.sample("y", dist.Normal(h @ w2, 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example("w1[-1] w2[-1]")
def identity_constant_ties() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        w1, w2 = normal("w1", 3, 4), normal("w2", 4)
        f = torch.tanh(x @ w1) @ (w1.T @ w1 + 2 * torch.eye(4)) @ w2
        pyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example("w1[-1] w2[-1]")
def subsampled_plate() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        w1, w2 = normal("w1", 3, 4), normal("w2", 4)
        with pyro.plate("data", len(x), subsample_size=3):
            xs, ys = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(torch.tanh(xs @ w1) @ w2 + offset, 1.0), obs=ys)

    return model, torch.randn(6, 3), torch.randn(6)


@example("w1[-1] w2[-1]")
def factor_mask_and_scale() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        w1, w2 = normal("w1", 3, 4), normal("w2", 4)
        pyro.factor("sparsity", -w1.norm(dim=0).sum())
        with pyro.plate("data", len(x)), poutine.scale(scale=0.1), poutine.mask(mask=x[:, 0] > 0):
            pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, 1.0), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example()
def factor_breaks_the_symmetry() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        w1, w2 = normal("w1", 3, 4), normal("w2", 4)
        pyro.factor("order", -(w2.diff() < 0).sum() * 1.0)
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example()
def mask_of_prior_breaks_the_symmetry() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        w1 = normal("w1", 3, 2)
        with poutine.mask(mask=torch.tensor([True, False])):
            w2 = pyro.sample("w2", dist.Normal(torch.zeros(2), 1.0))
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example()
def linear_regression() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        pyro.sample("y", dist.Normal(x @ normal("w", 3), 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)


@example()
def ordered_locations() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        base = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
        ordered = dist.transforms.OrderedTransform()
        loc = pyro.sample("loc", dist.TransformedDistribution(base, ordered))
        mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", mixture, obs=x)

    return model, torch.randn(5)


@example()
def random_walk() -> tuple[Any, ...]:
    def model(y: Tensor) -> None:
        steps = normal("steps", 6)
        pyro.sample("y", dist.Normal(steps.cumsum(-1), 1.0).to_event(1), obs=y)

    return model, torch.randn(6)


@example()
def dropout() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        h = torch.dropout(torch.tanh(x @ normal("w1", 3, 4)), 0.5, train=True)
        pyro.sample("y", dist.Normal(h @ normal("w2", 4), 1.0).to_event(1), obs=y)

    return model, torch.randn(6, 3), torch.randn(6)
