"""The figure at the top of the README: 50 ReLU units on 80 points of a sine, five seeds.

Mean field, permutations, and permutations with scales share data, start, steps and random numbers;
the noise is learned. Drawn are the predictive mean and two standard deviations of each seed's fit,
and the points of the first. Prints the certified lower bound of the evidence, the held-out
log-likelihood and the active units. Run ``python benchmarks/one_dimension.py``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from regression_data import Stack, stack
from results_store import Mean
from stacked_evaluation import (
    active_units,
    certified_bounds,
    posterior_predictions,
    predictive_scores,
)
from stacked_network import Layout
from stacked_objectives import METHODS
from stacked_training import Trained, of_all_rows, train
from torch import Tensor

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "fit.png"
TITLES = {
    "mean field": "AutoNormal",
    "permutations": "AutoSymmetrized",
    "permutations and scales": "with scales",
}
SEEDS = [0, 1, 2, 3, 4]
NUM_ROWS, NUM_TEST, NUM_UNITS, NUM_STEPS = 80, 500, 50, 4000
PRIOR_SCALE, LEARNING_RATE, NOISE = 2.0, 0.01, 0.1
LAYOUT = Layout(1, NUM_UNITS)


def points(seed: int) -> np.ndarray:
    """Points to train on, and to hold out after them, shape ``(rows, 2)``."""
    source = np.random.default_rng(seed)
    x = source.uniform(-1, 1, size=NUM_ROWS + NUM_TEST)
    return np.stack([x, np.sin(6 * x) + NOISE * source.normal(size=len(x))], 1)


def together(tables: list[np.ndarray]) -> Stack:
    """One table a seed, side by side; the first rows are those to train on."""
    size = len(tables[0])
    splits = [np.arange(size) + size * k for k in range(len(tables))]
    rows = [(split[:NUM_ROWS], split[NUM_ROWS:]) for split in splits]
    return stack(np.concatenate(tables), rows)


def band(data: Stack, trained: Trained) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of new targets, in their units, shape ``(runs, rows)``."""
    draws = list(posterior_predictions(LAYOUT, data, trained, SEEDS, 500))
    means = torch.stack([mean for mean, _ in draws])
    noise = torch.stack([log_noise.exp() for _, log_noise in draws])
    deviation = (means.var(0) + noise.square().mean(0)).sqrt()
    return means.mean(0), deviation


def fit(method: str, data: Stack) -> tuple[Trained, str]:
    """All seeds side by side, and what the panel says of them."""
    size = len(SEEDS)
    prior_scale, rate = torch.full((size,), PRIOR_SCALE), torch.full((size,), LEARNING_RATE)
    trained = train(
        LAYOUT,
        METHODS[method](),
        of_all_rows(LAYOUT, data.x, data.y),
        seeds=SEEDS,
        prior_scale=prior_scale,
        learning_rate=rate,
        num_steps=NUM_STEPS,
    )
    predictions = posterior_predictions(LAYOUT, data, trained, SEEDS, 500)
    scores = predictive_scores(data, predictions)["log_likelihood"]
    bounds = certified_bounds(LAYOUT, data, trained, prior_scale, num_draws=50, num_permutations=16)
    bound = Mean.of(bounds[method]["mean"].tolist()).text(0)
    active = Mean.of(active_units(LAYOUT, data, trained).float().tolist()).text(1)
    print(
        f"{method}: {bound} nats, {Mean.of(scores.tolist()).text(2)} nats a point, {active} units"
    )
    return trained, bound


def main() -> None:
    """Train, print, and draw."""
    tables = [points(seed) for seed in SEEDS]
    grid = np.linspace(-1.2, 1.2, 200)
    unseen = np.stack([grid, np.zeros_like(grid)], 1)
    data = together(tables)
    shown = together([np.concatenate([table[:NUM_ROWS], unseen]) for table in tables])
    plt.rcParams["font.size"] = 13
    figure, panels = plt.subplots(1, 3, figsize=(7.5, 3.4), sharey=True, layout="constrained")
    for panel, (method, title) in zip(panels, TITLES.items(), strict=True):
        trained, bound = fit(method, data)
        means, deviations = band(shown, trained)
        for k, table in enumerate(tables):
            center = table[:NUM_ROWS, 1].mean() + shown.unit[k] * means[k]
            spread = 2 * shown.unit[k] * deviations[k]
            panel.fill_between(grid, center - spread, center + spread, color="C0", alpha=0.08, lw=0)
            panel.plot(grid, center, color="C0", lw=1)
        panel.plot(*tables[0][:NUM_ROWS].T, ".", color="black", markersize=3)
        panel.set_title(f"{title}\nbound {bound} nats", fontsize=13)
        panel.set(xlabel="x", xticks=[-1, 0, 1])
    panels[0].set_ylabel("y")
    figure.savefig(FIGURE, dpi=160)


if __name__ == "__main__":
    main()
