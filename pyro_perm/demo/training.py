"""Train one guide with ordinary Pyro: SVI, Adam with a falling learning rate, all data a step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyro
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.nn import PyroModule
from pyro.optim import ClippedAdam
from tqdm.auto import trange

import pyro_perm as pp
from pyro_perm.demo.data import Dataset
from pyro_perm.demo.model import Classification, Regression

LEARNING_RATE = 0.01
FINAL_LEARNING_RATE = 0.0005


@dataclass(frozen=True)
class Fit:
    """A trained guide.

    Attributes:
        model: the model.
        guide: the guide that was trained.
        seconds_per_step: mean time that a step took.
    """

    model: PyroModule
    guide: AutoGuide
    seconds_per_step: float


def network(dataset: Dataset, width: int) -> PyroModule:
    """The model for a data set, with one hidden layer of ``width`` units."""
    inputs = dataset.train.x.shape[-1]
    if dataset.num_classes is None:
        return Regression(inputs, width, 1)
    return Classification(inputs, width, dataset.num_classes)


def mean_field(model: PyroModule) -> AutoNormal:
    """The usual guide, its units started apart."""
    return AutoNormal(model, init_loc_fn=pp.init_to_fan_in)


def symmetrized(model: PyroModule) -> pp.AutoSymmetrized:
    """The same guide, symmetrized: all that a user changes."""
    return pp.AutoSymmetrized(mean_field(model))


def fit(model: PyroModule, guide: AutoGuide, dataset: Dataset, steps: int, seed: int) -> Fit:
    """Train a guide by SVI; the seed fixes its initial values."""
    pyro.set_rng_seed(seed)
    decay = (FINAL_LEARNING_RATE / LEARNING_RATE) ** (1 / steps)
    optimizer = ClippedAdam({"lr": LEARNING_RATE, "lrd": decay})
    svi = SVI(model, guide, optimizer, loss=Trace_ELBO())
    x, y = dataset.train.x, dataset.train.y
    guide(x, y)  # Sets up its parameters, which is no part of a step.
    start = time.perf_counter()
    for step in (bar := trange(steps, desc=f"training {type(guide).__name__}")):
        loss = svi.step(x, y)
        if step % 100 == 0:
            bar.set_postfix_str(f"ELBO estimate {-loss:.0f}")
    return Fit(model, guide, (time.perf_counter() - start) / steps)
