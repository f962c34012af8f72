"""Bayesian neural networks with one hidden layer, written as for any other Pyro guide."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor


class Network(PyroModule):
    """A layer of ReLU units and a linear one; weights are ``N(0, 1/fan_in)``, biases ``N(0, 1)``.

    :param inputs: number of inputs.
    :param units: number of hidden units.
    :param outputs: number of outputs.
    """

    def __init__(self, inputs: int, units: int, outputs: int) -> None:
        super().__init__()
        self.hidden = _bayesian_linear(inputs, units)
        self.out = _bayesian_linear(units, outputs)

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs of the network, shape ``(N, outputs)``."""
        outputs: Tensor = self.out(torch.relu(self.hidden(x)))
        return outputs


class Regression(Network):
    """Gaussian observations, whose noise is inferred with the weights."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Observe the targets, shape ``(N,)``, at the inputs, shape ``(N, D)``."""
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        mean = self.outputs(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)


class Classification(Network):
    """Categorical observations."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Observe the classes, shape ``(N,)``, at the inputs, shape ``(N, D)``."""
        logits = self.outputs(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def _bayesian_linear(inputs: int, outputs: int) -> PyroModule:
    layer = PyroModule[torch.nn.Linear](inputs, outputs)  # type: ignore[call-arg, arg-type]
    weight = dist.Normal(0.0, 1 / math.sqrt(inputs)).expand([outputs, inputs])
    layer.weight = PyroSample(weight.to_event(2))
    layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([outputs]).to_event(1))
    return layer
