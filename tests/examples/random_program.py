"""Random programs: models built from random operations, to look for unsound proposals."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[["Program", Tensor], Tensor]

PRIORS = [
    lambda shape: dist.Normal(0.0, 1.0).expand(shape),
    lambda shape: dist.Laplace(torch.zeros(shape), 1.0),
    lambda shape: dist.Normal(0.0, 1.0 + 0.5 * (torch.arange(shape[-1]) % 2)).expand(shape),
    lambda shape: dist.Normal(
        torch.arange(float(shape[0])).view(-1, *[1] * (len(shape) - 1)), 1.0
    ).expand(shape),
]


class Program:
    """A model that applies a random sequence of operations to ``x``, shape ``(3, 4)``.

    Every random choice is drawn from its seed anew at each call, so that the model is a function.

    :param seed: names the program.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Run as a Pyro model."""
        self.choose = random.Random(self.seed)
        self.count = 0
        self.weights: list[Tensor] = []
        self.kept: list[Tensor] = []
        h = self.first(x)
        for _ in range(self.choose.randint(2, 6)):
            step = self.choose.choice(STEPS[h.dim()])
            h = step(self, h)
            if self.choose.random() < 0.3:
                self.kept.append(h)
        out = h.flatten(1) if self.choose.random() < 0.5 else h.reshape(len(x), -1)
        out = out @ self.weight(out.shape[1], 2) / out.shape[1]
        if self.choose.random() < 0.2:
            pyro.factor("penalty", -0.1 * (h * h).sum())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(out, 1.0).to_event(1), obs=y)

    def first(self, x: Tensor) -> Tensor:
        """Start from vectors, from images or from sequences of vectors."""
        kind = self.choose.choice(["vector", "vector", "image", "sequence"])
        if kind == "vector":
            return x @ self.weight(4, self.choose.choice([2, 4, 6]))
        if kind == "image":
            h = F.conv2d(x.view(-1, 1, 2, 2), self.weight(self.choose.choice([2, 4]), 1, 1, 1))
            return F.pad(h, (1, 1, 1, 1))
        return x.view(-1, 2, 2) @ self.weight(2, self.choose.choice([2, 4]))

    def weight(self, *shape: int) -> Tensor:
        """A latent tensor, sometimes one that was used before."""
        same = [w for w in self.weights if w.shape == shape]
        if same and self.choose.random() < 0.25:
            return self.choose.choice(same)
        self.count += 1
        prior = self.choose.choices(PRIORS, [8, 3, 1, 1])[0](torch.Size(shape))
        name = f"w{self.count}"
        if self.choose.random() < 0.15:
            scale = pyro.sample(
                f"s{self.count}", dist.LogNormal(0.0, 0.3).expand(shape[-1:]).to_event(1)
            )
            prior = dist.Normal(0.0, scale).expand(shape)
        weight = pyro.sample(name, prior.to_event(len(shape)))
        self.weights.append(weight)
        return weight


def steps(rank: int) -> Callable[[Step], Step]:
    """Register a step for tensors of some rank."""

    def register(step: Step) -> Step:
        STEPS[rank].append(step)
        return step

    return register


STEPS: dict[int, list[Step]] = {2: [], 3: [], 4: []}


def data(seed: int) -> tuple[Any, ...]:
    """Inputs for a program."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, generator=generator), torch.randn(3, 2, generator=generator)
