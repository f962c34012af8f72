"""What each training recipe does to convergence.

A network with one hidden layer of ReLU units is trained on minibatches by each recipe in turn, all
from the same initial values but the pretrained ones. Printed after 1, 2, 5 and 10 thousand steps:
the certified lower bound of ELBO(q^G) in nats, with weight one, and test log-likelihood, mean +-
standard error over the seeds. The last-layer network trains fewer Bayesian weights, so that its
bound is that of another model. Run ``python benchmarks/recipes.py``; ``--folder runs`` keeps
checkpoints and results there, from which a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.demo.data import Dataset, load

UNITS, BATCH_SIZE, LEARNING_RATE = 50, 64, 0.005
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
    "both": Recipe(lambda: warm_up(pp.LocalReparametrization(pp.FunctionalSymmetrized_ELBO()))),
    "sticking the landing": Recipe(lambda: pp.StickingTheLanding(Trace_ELBO())),
    "pretrained": Recipe(init=pretrained),
    "learned prior scales": Recipe(network=LearnedScales),
    "last layer": Recipe(
        pp.FunctionalMeanField_ELBO,
        network=partial(Network, bayesian=("fc2",)),
        symmetrize=False,
    ),
}


def curve(
    name: str, data: Dataset, seed: int, options: argparse.Namespace, folder: Path
) -> dict[str, list[float]]:
    """Bound and test log-likelihood after each number of steps; a finished one is read."""
    recipe = RECIPES[name]
    stem = f"{data.name}_{name.replace(' ', '_')}_{seed}"
    results = folder / f"{stem}.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = recipe.network(data)
    guide = AutoNormal(model, init_loc_fn=recipe.init(data), init_scale=0.05)
    if recipe.symmetrize:
        guide = pp.AutoSymmetrized(guide)
    train = (data.train.x, data.train.y)
    for steps in sorted(options.steps):
        if str(steps) in found:
            continue
        pp.fit(
            model,
            guide,
            train,
            steps=steps,
            batch_size=BATCH_SIZE,
            elbo=recipe.elbo(),
            learning_rate=LEARNING_RATE,
            checkpoint=folder / f"{stem}.pt",
            progress=False,
        )
        found[str(steps)] = scores(model, guide, data, options.samples)
        results.write_text(json.dumps(found))
        print(f"{stem}, {steps} steps: {found[str(steps)]}", file=sys.stderr, flush=True)
    return found


def scores(model: Network, guide: Callable, data: Dataset, num_samples: int) -> list[float]:
    """The certified bound, and the mean test log-likelihood."""
    random = torch.get_rng_state()
    args = (data.train.x, data.train.y)
    if isinstance(model.fc1, PyroModule):
        bound = pp.symmetrized_elbo(model, guide, *args, num_samples=num_samples, progress=False)
        lower = bound.lower
    else:
        losses = [pp.FunctionalMeanField_ELBO().loss(model, guide, *args) for _ in range(20)]
        lower = -statistics.mean(losses)
    test = (data.test.x, data.test.y)
    prediction = pp.predict(model, guide, *test, num_samples=num_samples, progress=False)
    torch.set_rng_state(random)
    return [lower, prediction.log_predictive_density.mean().item()]


def mean_and_error(values: list[float], digits: int) -> str:
    """Mean +- standard error."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} +- {error:.{digits}f}"


def main() -> None:
    """Print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", default=["diabetes"])
    parser.add_argument("--recipe", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, nargs="*", default=[1000, 2000, 5000, 10_000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where checkpoints and results are kept")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for source in options.data:
            data = load(source)
            columns = "".join(f"{f'{steps} steps':>30s}" for steps in sorted(options.steps))
            print(f"{source}: ELBO(q^G) >=, and test log-likelihood\n{'':24s}{columns}")
            for name in options.recipe:
                curves = [curve(name, data, s, options, folder) for s in range(options.seeds)]
                row = f"{name:24s}"
                for steps in sorted(options.steps):
                    bounds, tests = zip(*(found[str(steps)] for found in curves), strict=True)
                    row += f"{mean_and_error(bounds, 1):>16s}{mean_and_error(tests, 3):>14s}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
