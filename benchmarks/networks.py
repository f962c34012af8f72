"""Bayesian networks: fully connected ones of any depth, with their permutation spec, and others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from pyro_perm import Axis


def layer_sizes(inputs: int, hidden: Sequence[int], outputs: int) -> list[tuple[int, int]]:
    """``(units, inputs)`` of each layer."""
    sizes = [inputs, *hidden, outputs]
    return [(after, before) for before, after in pairwise(sizes)]


def outputs_of(x: Tensor, inputs: int, hidden: Sequence[int], outputs: int) -> Tensor:
    """Sample the weights, ``N(0, 1/fan_in)``, and biases, ``N(0, 1)``; ReLU between layers."""
    for depth, (units, fan_in) in enumerate(layer_sizes(inputs, hidden, outputs)):
        weight = dist.Normal(0.0, 1 / math.sqrt(fan_in)).expand([units, fan_in]).to_event(2)
        bias = dist.Normal(0.0, 1.0).expand([units]).to_event(1)
        x = torch.relu(x) if depth else x
        x = x @ pyro.sample(f"w{depth}", weight).mT + pyro.sample(f"b{depth}", bias).unsqueeze(-2)
    return x


def network(inputs: int, hidden: Sequence[int], outputs: int, *, classify: bool) -> Callable:
    """A model ``(x, y)`` of classes, or of real targets with a latent noise scale."""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        out = outputs_of(x, inputs, hidden, outputs)
        noise = None if classify else pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            if classify:
                pyro.sample("y", dist.Categorical(logits=out), obs=y)
            else:
                pyro.sample("y", dist.Normal(out.squeeze(-1), noise), obs=y)

    return model


def with_priors(net: nn.Module) -> nn.Module:
    """A network made Bayesian: weights are ``N(0, 1/fan_in)``, and biases ``N(0, 1)``."""
    to_pyro_module_(net)
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            scale = 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 1.0
            prior = dist.Normal(0.0, scale).expand(parameter.shape).to_event(parameter.dim())
            setattr(module, name, PyroSample(prior))
    return net


def spec_with_scales(num_hidden: int) -> dict[str, dict[str, Axis]]:
    """The same with degrees: rectifiers may be rescaled."""
    incoming, outgoing = Axis(0, scale=1), Axis(1, scale=-1)
    return {
        f"hidden{k}": {f"w{k}": incoming, f"b{k}": incoming, f"w{k + 1}": outgoing}
        for k in range(num_hidden)
    }


def spec(num_hidden: int) -> dict[str, dict[str, int]]:
    """The permutation spec: one group a hidden layer."""
    return {f"hidden{k}": {f"w{k}": 0, f"b{k}": 0, f"w{k + 1}": 1} for k in range(num_hidden)}
