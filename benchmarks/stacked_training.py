"""Training a stack of networks: Adam, one draw a step, all rows at once.

Every run has random numbers of its own, so that it does not matter which runs share a stack, and
its learning rate may differ from the others'. The state is saved now and then, and taken up again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stacked_network import Layout
from stacked_network import log_likelihood as log_likelihood_of_rows
from stacked_objectives import Objective, Posteriors
from torch import Tensor

INITIAL_SCALE = 0.05
_FINAL_SHARE = 0.05  # of the learning rate
_STEPS_PER_CHECKPOINT = 500
_STEPS_PER_RECORD = 100


@dataclass
class Adam:
    """Adam (Kingma & Ba 2015) with one learning rate a run.

    Attributes:
        parameters: shapes ``(runs, size)``.
        rates: shape ``(runs, 1)``.
    """

    parameters: list[Tensor]
    rates: Tensor
    step_number: int = 0
    means: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.means = self.means or [torch.zeros_like(p) for p in self.parameters]
        self.squares = self.squares or [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Follow the gradients that the parameters have, and forget them.

        :param share: of the learning rates.
        """
        self.step_number += 1
        spread = math.sqrt(1 - 0.999**self.step_number)
        correction = spread / (1 - 0.9**self.step_number)
        for parameter, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            gradient = parameter.grad
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            step = mean / square.sqrt().add_(1e-8 * spread)
            parameter.sub_(step.mul_(share * correction * self.rates))
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        """What :meth:`load` takes."""
        values = [parameter.detach() for parameter in self.parameters]
        return {
            "step": self.step_number,
            "values": values,
            "means": self.means,
            "squares": self.squares,
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.step_number = state["step"]
        for ours, theirs in (
            (self.parameters, state["values"]),
            (self.means, state["means"]),
            (self.squares, state["squares"]),
        ):
            for here, there in zip(ours, theirs, strict=True):
                here.copy_(there)


@dataclass(frozen=True)
class Trained:
    """What training ends with.

    Attributes:
        loc: means of the factors, shape ``(runs, size)``.
        scale: their standard deviations, likewise.
        trajectory: averages of the objective over each hundred steps, shape ``(records, runs)``.
        seconds: of training, all runs together.
    """

    loc: Tensor
    scale: Tensor
    trajectory: Tensor
    seconds: float


def learning_share(step: int, num_steps: int) -> float:
    """Of the learning rate: level for a half of the steps, then falling exponentially."""
    late = max(0.0, 2 * step / num_steps - 1)
    return _FINAL_SHARE**late


def draw_all(generators: list[torch.Generator], size: int) -> Tensor:
    """Standard Normal numbers, each run's from its own generator, shape ``(runs, size)``."""
    return torch.stack([torch.randn(size, generator=source) for source in generators])


def of_all_rows(layout: Layout, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """The log-likelihood of all rows.

    :param x: shape ``(runs, rows, inputs)``.
    :param y: shape ``(runs, rows)``.
    """
    return lambda vector: log_likelihood_of_rows(layout, vector, x, y).sum(-1)


def of_some_rows(
    layout: Layout, x: Tensor, y: Tensor, batch_size: int
) -> Callable[[Tensor], Tensor]:
    """An estimate of it from rows that are drawn anew each time, others for each run.

    :param x: shape ``(rows, inputs)``, the same for all runs.
    :param y: shape ``(rows,)``.
    """

    def log_likelihood(vector: Tensor) -> Tensor:
        rows = torch.randint(len(x), (len(vector), batch_size))
        some = log_likelihood_of_rows(layout, vector, x[rows], y[rows]).sum(-1)
        return some * (len(x) / batch_size)

    return log_likelihood


def train(
    layout: Layout,
    objective: Objective,
    log_likelihood: Callable[[Tensor], Tensor],
    *,
    seeds: list[int],
    prior_scale: Tensor,
    learning_rate: Tensor,
    num_steps: int,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Maximize likelihood plus objective.

    :param log_likelihood: of all rows, or an estimate of it, given vectors of parameters of shape
        ``(runs, size)``; shape ``(runs,)``.
    :param seeds: of start and noise, one a run.
    :param prior_scale: shape ``(runs,)``, as the learning rate.
    :param checkpoint: where the state is kept on the way; None for nowhere.
    :param report: is told about progress.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    torch.manual_seed(seeds[0])  # The estimators' own draws come from the default generator.
    loc = torch.stack([layout.initial(source) for source in generators]).requires_grad_()
    raw = math.log(math.expm1(INITIAL_SCALE))
    raw_scale = torch.full_like(loc, raw).requires_grad_()
    prior = layout.prior_scale(prior_scale)
    adam = Adam([loc, raw_scale], learning_rate.unsqueeze(-1))
    trajectory: list[Tensor] = []
    recent, seconds = torch.zeros(len(seeds), dtype=torch.float64), 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        adam.load(saved["adam"])
        for source, state in zip(generators, saved["generators"], strict=True):
            source.set_state(state)
        torch.set_rng_state(saved["default_generator"])
        trajectory, seconds = list(saved["trajectory"]), saved["seconds"]
    begin = time.perf_counter() - seconds
    while adam.step_number < num_steps:
        scale = torch.nn.functional.softplus(raw_scale)
        value = loc + scale * draw_all(generators, layout.size)
        bound = log_likelihood(value).double()
        bound = bound + objective(Posteriors(layout, value, loc, scale, prior))
        (-bound.sum()).backward()
        adam.step(learning_share(adam.step_number, num_steps))
        recent += bound.detach()
        if adam.step_number % _STEPS_PER_RECORD == 0:
            trajectory.append(recent / _STEPS_PER_RECORD)
            recent = torch.zeros_like(recent)
        if adam.step_number % _STEPS_PER_CHECKPOINT == 0:
            seconds = time.perf_counter() - begin
            report(f"step {adam.step_number}, {seconds:.0f} s, bound {trajectory[-1].mean():.1f}")
            if checkpoint is not None:
                _save(checkpoint, adam, generators, trajectory, seconds)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        scale = torch.nn.functional.softplus(raw_scale)
    return Trained(loc.detach(), scale, torch.stack(trajectory or [recent]), seconds)


def _save(
    path: Path,
    adam: Adam,
    generators: list[torch.Generator],
    trajectory: list[Tensor],
    seconds: float,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    state = {
        "adam": adam.state(),
        "generators": [source.get_state() for source in generators],
        "default_generator": torch.get_rng_state(),
        "trajectory": torch.stack(trajectory),
        "seconds": seconds,
    }
    torch.save(state, unfinished)
    unfinished.replace(path)
