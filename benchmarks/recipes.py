"""What each training recipe does to convergence.

A network with one hidden layer of ReLU units is trained on minibatches by each recipe in turn, all
from the same initial values but the pretrained ones. Printed after 1, 2, 5 and 10 thousand steps:
the certified lower bound of ELBO(q^G) in nats, with weight one, and test log-likelihood. The
last-layer network trains fewer Bayesian weights, so that its bound is that of another model. Run

    OMP_NUM_THREADS=1 python benchmarks/recipes.py

which takes about twelve minutes a seed, and goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule, PyroSample
from recipe_table import BENCHMARK, convergence
from results_store import RESULTS, Mean, Run, Store
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.demo.data import Dataset, load
from pyro_perm.demo.sources import SOURCES

UNITS, BATCH_SIZE, LEARNING_RATE, INITIAL_SCALE = 50, 64, 0.005, 0.05
PRETRAINING_STEPS = 500


class Network(PyroModule):
    """Two layers of torch's; weights ``N(0, 1/fan_in)``, biases ``N(0, 1)``.

    :param data: what it is for.
    :param bayesian: which layers have priors.
    """

    def __init__(self, data: Dataset, bayesian: tuple[str, ...] = ("fc1", "fc2")) -> None:
        super().__init__()
        self.num_data, self.classify = len(data.train.x), data.num_classes is not None
        sizes = {"fc1": (data.train.x.shape[1], UNITS), "fc2": (UNITS, data.num_classes or 1)}
        for name, size in sizes.items():
            kind = PyroModule[nn.Linear] if name in bayesian else nn.Linear
            layer = kind(*size)
            setattr(self, name, layer)
            if name in bayesian:
                self.set_priors(layer)

    def set_priors(self, layer: nn.Module) -> None:
        """Independent Normals for all parameters of a layer."""
        for name, value in list(layer.named_parameters()):
            scale = 1.0 if name == "bias" else 1 / math.sqrt(value.shape[-1])
            prior = dist.Normal(torch.zeros(value.shape), scale)
            setattr(layer, name, PyroSample(prior.to_event(value.dim())))

    def outputs(self, x: Tensor) -> Tensor:
        """What the network computes."""
        return self.fc2(torch.relu(self.fc1(x)))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """Observe targets, each batch counting for all data."""
        outputs = self.outputs(x)
        noise = None if self.classify else pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", self.num_data, subsample_size=len(x)):
            if self.classify:
                pyro.sample("y", dist.Categorical(logits=outputs), obs=y)
            else:
                pyro.sample("y", dist.Normal(outputs.squeeze(-1), noise), obs=y)


class LearnedScales(Network):
    """The same with a prior scale for each layer's weights, fitted with the guide."""

    def __init__(self, data: Dataset) -> None:
        super().__init__(data)
        for layer in (self.fc1, self.fc2):
            shape = (layer.out_features, layer.in_features)
            layer.log_scale = nn.Parameter(torch.tensor(-0.5 * math.log(shape[1])))
            layer.weight = PyroSample(partial(learned_prior, shape=shape))


def learned_prior(layer: Any, shape: tuple[int, int]) -> Any:
    """Normals of the layer's own scale."""
    return dist.Normal(0.0, layer.log_scale.exp()).expand(shape).to_event(2)


def pretrained(data: Dataset) -> Callable:
    """Initial values from a network that was fitted without priors."""
    net = nn.Sequential(
        nn.Linear(data.train.x.shape[1], UNITS), nn.ReLU(), nn.Linear(UNITS, data.num_classes or 1)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    for _ in range(PRETRAINING_STEPS):
        optimizer.zero_grad()
        outputs = net(data.train.x)
        if data.num_classes:
            loss = nn.functional.cross_entropy(outputs, data.train.y)
        else:
            loss = nn.functional.mse_loss(outputs.squeeze(-1), data.train.y)
        loss.backward()
        optimizer.step()
    names = {"0": "fc1", "2": "fc2"}
    values = {f"{names[n[0]]}{n[1:]}": p.detach() for n, p in net.named_parameters()}
    return init_to_value(values=values, fallback=pp.init_to_fan_in)


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        elbo: makes the loss.
        network: makes the model.
        init: makes initial values.
        symmetrize: whether the guide is symmetrized.
    """

    elbo: Callable[[], Any] = pp.FunctionalSymmetrized_ELBO
    network: Callable[[Dataset], Network] = Network
    init: Callable[[Dataset], Callable] = field(default=lambda data: pp.init_to_fan_in)
    symmetrize: bool = True


def warm_up(elbo: Any) -> Any:
    """A warm-up over the first 1,000 steps."""
    return pp.AnnealedKL(elbo, pp.linear_warm_up(1000))


RECIPES = {
    "mean field": Recipe(pp.FunctionalMeanField_ELBO, symmetrize=False),
    "symmetrized": Recipe(),
    "warm-up": Recipe(lambda: warm_up(pp.FunctionalSymmetrized_ELBO())),
    "local reparametrization": Recipe(
        lambda: pp.LocalReparametrization(pp.FunctionalSymmetrized_ELBO())
    ),
    "warm-up and local reparametrization": Recipe(
        lambda: warm_up(pp.LocalReparametrization(pp.FunctionalSymmetrized_ELBO()))
    ),
    "sticking the landing": Recipe(lambda: pp.StickingTheLanding(Trace_ELBO())),
    "pretrained": Recipe(init=pretrained),
    "learned prior scales": Recipe(network=LearnedScales),
    "last layer": Recipe(
        pp.FunctionalMeanField_ELBO,
        network=partial(Network, bayesian=("fc2",)),
        symmetrize=False,
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """A data set, and how all recipes train and are scored on it.

    Attributes:
        data: the data set.
        samples: draws for each score.
        store: where results go.
        cache: where training goes on from.
    """

    data: Dataset
    samples: int
    store: Store
    cache: Path

    def curve(self, name: str, seed: int, all_steps: Sequence[int]) -> None:
        """Train by a recipe, and score it after each number of steps that has no file yet."""
        runs = {steps: self.run(name, seed, steps) for steps in sorted(all_steps)}
        missing = [n for n, run in runs.items() if not self.store.has(run, self.settings(name, n))]
        if not missing:
            return
        recipe = RECIPES[name]
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        model = recipe.network(self.data)
        guide = AutoNormal(model, init_loc_fn=recipe.init(self.data), init_scale=INITIAL_SCALE)
        if recipe.symmetrize:
            guide = pp.AutoSymmetrized(guide)
        for steps in missing:
            self.train(recipe, model, guide, steps, f"{name.replace(' ', '-')}-{seed}")
            scores = self.scores(model, guide)
            self.store.save(runs[steps], self.settings(name, steps), scores)
            print(f"{name}, seed {seed}, {steps} steps: {scores}", file=sys.stderr, flush=True)

    def run(self, name: str, seed: int, steps: int) -> Run:
        """What a file is about."""
        return Run(BENCHMARK, self.data.name, f"{name}, {steps} steps", seed)

    def settings(self, name: str, steps: int) -> dict[str, Any]:
        """What a file was made with."""
        return {
            "recipe": name,
            "steps": steps,
            "units": UNITS,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "samples": self.samples,
        }

    def train(self, recipe: Recipe, model: Network, guide: Callable, steps: int, stem: str) -> None:
        """So many steps from the start, going on where the cache is.

        :raises ValueError: if the cache is further than that.
        """
        checkpoint = self.cache / BENCHMARK / f"{self.data.name}-{stem}.pt"
        pp.fit(
            model,
            guide,
            (self.data.train.x, self.data.train.y),
            steps=steps,
            batch_size=BATCH_SIZE,
            elbo=recipe.elbo(),
            learning_rate=LEARNING_RATE,
            checkpoint=checkpoint,
            progress=False,
        )

    def scores(self, model: Network, guide: Callable) -> dict[str, float]:
        """The certified bound with its standard error, and the mean test log-likelihood."""
        train, test = ((part.x, part.y) for part in (self.data.train, self.data.test))
        options = {"num_samples": self.samples, "progress": False}
        if isinstance(model.fc1, PyroModule):
            certified = pp.symmetrized_elbo(model, guide, *train, **options)
            bound = Mean(certified.lower, certified.lower_standard_error, self.samples)
        else:
            elbo = pp.FunctionalMeanField_ELBO()
            bound = Mean.of([-elbo.loss(model, guide, *train) for _ in range(self.samples)])
        prediction = pp.predict(model, guide, *test, **options)
        return {
            "bound": bound.mean,
            "error": bound.error,
            "log_likelihood": prediction.log_predictive_density.mean().item(),
        }


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and print a table for each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="*", choices=SOURCES, default=["diabetes"])
    parser.add_argument("--recipe", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, nargs="*", default=[1000, 2000, 5000, 10_000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".checkpoints")
    options = parser.parse_args(arguments)
    store = Store(options.results)
    for source in options.data:
        benchmark = Benchmark(load(source), options.samples, store, options.cache)
        for seed, name in product(range(options.seeds), options.recipe):
            benchmark.curve(name, seed, options.steps)
        records = [r for r in store.records(BENCHMARK) if r["data"] == source]
        print(source, *(" | ".join(row) for row in convergence(records)), sep="\n")


if __name__ == "__main__":
    main()
