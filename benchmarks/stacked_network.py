"""Bayesian networks of one hidden layer, many of them side by side.

Small networks leave a processor idle between operations. Twenty of them, one for each split of a
data set, train in the time of two or three when their tensors are stacked.

All that belongs to a hidden unit is one row: weights in, bias, weights out. After the rows come the
biases of the outputs and, for regression, the logarithm of the noise, so that a network is one
vector. The prior is ``N(0, c^2 / fan_in)`` on weights and ``N(0, c^2)`` on biases, for one prior
scale ``c``, and ``N(-2, 2^2)`` on the logarithm of the noise of standardized targets.
:func:`pyro_model` is the regression written for Pyro.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_perm import PermutationSymmetry
from pyro_perm.symmetry import SymmetryGroup

_LOG_NOISE_LOC, _LOG_NOISE_SCALE = -2.0, 2.0
_INITIAL_LOG_NOISE = -1.0


@dataclass(frozen=True)
class Layout:
    """Where in a vector of all parameters each is.

    Attributes:
        inputs: number of inputs.
        num_units: of the hidden layer.
        num_classes: None for regression, with one output and its noise.
    """

    inputs: int
    num_units: int = 50
    num_classes: int | None = None

    @property
    def num_outputs(self) -> int:
        """Classes, or one."""
        return self.num_classes or 1

    @property
    def width(self) -> int:
        """Entries of a unit."""
        return self.inputs + 1 + self.num_outputs

    @property
    def powers(self) -> list[int]:
        """By which power of ``c`` rescaling a unit multiplies each of its entries."""
        return [1] * (self.inputs + 1) + [-1] * self.num_outputs

    @property
    def num_others(self) -> int:
        """Entries of a network that belong to no unit."""
        return self.num_outputs + (self.num_classes is None)

    @property
    def size(self) -> int:
        """Entries of a network."""
        return self.num_units * self.width + self.num_others

    @property
    def group(self) -> SymmetryGroup:
        """The permutations of the rows."""
        shapes = {"units": (self.num_units, self.width)}
        return PermutationSymmetry({"hidden": {"units": 0}}, shapes=shapes).group

    def units(self, vector: Tensor) -> Tensor:
        """Rows of the units, shape ``(..., units, width)``."""
        shape = (*vector.shape[:-1], self.num_units, self.width)
        return vector[..., : self.num_units * self.width].reshape(shape)

    def parts(self, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights in, biases and weights out, shapes ``(..., units, entries)``."""
        sizes = [self.inputs, 1, self.num_outputs]
        incoming, bias, outgoing = self.units(vector).split(sizes, -1)
        return incoming, bias, outgoing

    def filled(
        self, incoming: float, bias: float, outgoing: float, of_output: float, log_noise: float
    ) -> Tensor:
        """A vector that is the same for all units, shape ``(size,)``."""
        row = [incoming] * self.inputs + [bias] + [outgoing] * self.num_outputs
        others = [of_output] * self.num_outputs
        others += [log_noise] * (self.num_others - self.num_outputs)
        return torch.tensor(row * self.num_units + others)

    def prior_scale(self, c: Tensor) -> Tensor:
        """Standard deviations of the prior.

        :param c: prior scales, shape ``(runs,)``.
        :returns: shape ``(runs, size)``.
        """
        fan_in, fan_out = 1 / math.sqrt(self.inputs), 1 / math.sqrt(self.num_units)
        relative = self.filled(fan_in, 1.0, fan_out, 1.0, 0.0)
        fixed = self.filled(0.0, 0.0, 0.0, 0.0, _LOG_NOISE_SCALE)
        return c.unsqueeze(-1) * relative + fixed

    def prior_loc(self) -> Tensor:
        """Means of the prior, shape ``(size,)``."""
        return self.filled(0.0, 0.0, 0.0, 0.0, _LOG_NOISE_LOC)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Weights drawn by their fan-in, so that units start apart, shape ``(size,)``."""
        fan_in, fan_out = 1 / math.sqrt(self.inputs), 1 / math.sqrt(self.num_units)
        spread = self.filled(fan_in, 0.1, fan_out, 0.1, 0.0)
        start = spread * torch.randn(self.size, generator=generator)
        return start + self.filled(0.0, 0.0, 0.0, 0.0, _INITIAL_LOG_NOISE)


def logits(layout: Layout, vector: Tensor, x: Tensor, keep: Tensor | None = None) -> Tensor:
    """All outputs.

    :param vector: shape ``(runs, size)``.
    :param x: shape ``(runs, rows, inputs)``.
    :param keep: by what to multiply hidden units, shape ``(runs, rows, units)``.
    :returns: shape ``(runs, rows, outputs)``.
    """
    incoming, bias, outgoing = layout.parts(vector)
    hidden = torch.relu(torch.baddbmm(bias.mT, x, incoming.mT))
    hidden = hidden if keep is None else hidden * keep
    first = layout.num_units * layout.width
    return hidden @ outgoing + vector[..., None, first : first + layout.num_outputs]


def outputs(layout: Layout, vector: Tensor, x: Tensor, keep: Tensor | None = None) -> Tensor:
    """Means of the targets of a regression, shape ``(runs, rows)``; see :func:`logits`."""
    return logits(layout, vector, x, keep).squeeze(-1)


def log_normal(y: Tensor, mean: Tensor, log_noise: Tensor) -> Tensor:
    """``log N(y; mean, noise^2)``, elementwise."""
    error = (y - mean) * (-log_noise).exp()
    return -0.5 * error.square() - log_noise - 0.5 * math.log(2 * math.pi)


def log_likelihood(layout: Layout, vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of each row, shape ``(runs, rows)``."""
    if layout.num_classes is None:
        return log_normal(y, outputs(layout, vector, x), vector[..., -1:])
    log_probabilities = logits(layout, vector, x).log_softmax(-1)
    return log_probabilities.gather(-1, y.unsqueeze(-1)).squeeze(-1)


def pyro_model(layout: Layout, c: float) -> Callable[..., None]:
    """The same model for Pyro: ``(x, y)``, sites ``w0, b0, w1, b1, log_noise``."""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        n, d = layout.num_units, layout.inputs
        w0 = pyro.sample("w0", dist.Normal(0.0, c / math.sqrt(d)).expand([n, d]).to_event(2))
        b0 = pyro.sample("b0", dist.Normal(0.0, c).expand([n]).to_event(1))
        w1 = pyro.sample("w1", dist.Normal(0.0, c / math.sqrt(n)).expand([1, n]).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(0.0, c).expand([1]).to_event(1))
        log_noise = pyro.sample("log_noise", dist.Normal(_LOG_NOISE_LOC, _LOG_NOISE_SCALE))
        mean = (torch.relu(x @ w0.mT + b0.unsqueeze(-2)) @ w1.mT).squeeze(-1) + b1
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, log_noise.exp()), obs=y)

    return model


def pyro_sites(layout: Layout, vector: Tensor) -> dict[str, Tensor]:
    """One network's parameters under the names of :func:`pyro_model`.

    :param vector: shape ``(size,)``.
    """
    incoming, bias, outgoing = layout.parts(vector)
    return {
        "w0": incoming,
        "b0": bias.squeeze(-1),
        "w1": outgoing.mT,
        "b1": vector[-2:-1],
        "log_noise": vector[-1],
    }
