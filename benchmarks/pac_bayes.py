r"""Certified risk of a classifier of digits: what symmetry is worth in a PAC-Bayes bound.

For a prior ``p`` that has not seen the data, with probability ``1 - delta`` over ``n`` rows and one
network ``w`` drawn from the posterior ``q``,

    kl(error on the rows || risk) <= (log q(w) / p(w) + log(2 sqrt(n) / delta)) / n

(Rivasplata et al. 2020, Theorem 1, with the constant of Maurer 2004), which is inverted numerically
for the risk. What is drawn from ``q``, permuted and rescaled at random is a draw of the symmetrized
guide and has the same errors and the same risk, so ``log q(w) / p(w)`` may be replaced by ``log
q~(w) / p(w)``. With 16 hidden units it is known exactly, as a permanent, and no Monte Carlo error
enters. The bound holds for each draw; what is printed is the mean of it over draws and seeds.

Images of 8 x 8 pixels of scikit-learn, scaled by their largest possible value, not by the data; a
fifth of them are held out, to see how loose the bound is. The objective is the likelihood minus a
multiple of the method's divergence from the prior: the bound wants it at more than one. Run
``python benchmarks/pac_bayes.py``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from results_store import RESULTS, Run, Store
from sklearn.datasets import load_digits
from stacked_network import Layout, logits
from stacked_objectives import METHODS, Posteriors, exact
from stacked_training import Trained, draw_all, of_all_rows, train
from torch import Tensor

BENCHMARK = "pac-bayes"
DELTA = 0.05
WEIGHTS = (1.0, 3.0)
_LARGEST_VALUE = 16.0


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows to train on, their labels, rows that are held out, theirs."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order] / _LARGEST_VALUE
    y = torch.tensor(labels)[order]
    num_train = round(0.8 * len(x))
    return x[:num_train], y[:num_train], x[num_train:], y[num_train:]


def inverse_kl(error: Tensor, budget: Tensor) -> Tensor:
    """Largest risk whose ``kl(error || risk)`` does not exceed the budget, by bisection.

    :param error: between 0 and 1.
    :param budget: in nats, shape of the error.
    """
    low, high = error.clone(), torch.ones_like(error)
    for _ in range(60):
        middle = (low + high) / 2
        within = binary_kl(error, middle) <= budget
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    return high


def binary_kl(p: Tensor, q: Tensor) -> Tensor:
    """``kl(p || q)`` of two Bernoulli distributions, in nats."""
    return torch.xlogy(p, p / q) + torch.xlogy(1 - p, (1 - p) / (1 - q))


def certified_risk(error: Tensor, log_ratio: Tensor, num_rows: int) -> Tensor:
    """With probability .95 over rows and draw, what the risk of the drawn network is at most.

    :param error: share of the rows that the network gets wrong.
    :param log_ratio: ``log q(w) / p(w)`` in nats, which may be negative.
    """
    budget = (log_ratio + math.log(2 * math.sqrt(num_rows) / DELTA)) / num_rows
    return inverse_kl(error.double(), budget.clamp_min(0.0))


@torch.no_grad()
def scores(
    layout: Layout, trained: Trained, prior_scale: Tensor, seeds: list[int], num_draws: int
) -> list[dict[str, Any]]:
    """Errors, divergences and certified risks of each run, means over draws."""
    x, y, test_x, test_y = digits()
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    prior = layout.prior_scale(prior_scale)
    collected: dict[str, list[Tensor]] = {}
    for _ in range(num_draws):
        value = trained.loc + trained.scale * draw_all(generators, layout.size)
        posteriors = Posteriors(layout, value, trained.loc, trained.scale, prior)
        error, test_error = (
            (logits(layout, value, rows.expand(len(seeds), -1, -1)).argmax(-1) != labels)
            .double()
            .mean(-1)
            for rows, labels in ((x, y), (test_x, test_y))
        )
        collected.setdefault("error", []).append(error)
        collected.setdefault("test error", []).append(test_error)
        for kind, log_ratio in exact(posteriors).items():
            collected.setdefault(f"log ratio, {kind}", []).append(log_ratio)
            risk = certified_risk(error, log_ratio, len(x))
            collected.setdefault(f"certified risk, {kind}", []).append(risk)
    means = {name: torch.stack(values).mean(0).tolist() for name, values in collected.items()}
    return [{name: values[k] for name, values in means.items()} for k in range(len(seeds))]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    store, seeds = Store(options.results), list(range(options.seeds))
    settings = {
        "steps": options.steps,
        "draws": options.draws,
        "units": options.units,
        "learning_rate": 0.01,
        "prior_scale": 1.0,
        "delta": DELTA,
    }
    x, y, *_ = digits()
    layout = Layout(x.shape[1], options.units, num_classes=10)
    for weight in WEIGHTS:
        data = f"digits, weight {weight:g}"
        for method in ("mean field", "permutations", "permutations and scales"):
            runs = [Run(BENCHMARK, data, method, seed) for seed in seeds]
            if all(store.has(run, settings) for run in runs):
                continue
            objective = METHODS[method]()
            trained = train(
                layout,
                lambda q, objective=objective, weight=weight: weight * objective(q),
                of_all_rows(layout, x.expand(len(seeds), -1, -1), y.expand(len(seeds), -1)),
                seeds=seeds,
                prior_scale=torch.ones(len(seeds)),
                learning_rate=torch.full((len(seeds),), 0.01),
                num_steps=options.steps,
            )
            found = scores(layout, trained, torch.ones(len(seeds)), seeds, options.draws)
            for run, each in zip(runs, found, strict=True):
                store.save(run, settings, each)
            print(data, method, found[0], flush=True)


if __name__ == "__main__":
    main()
