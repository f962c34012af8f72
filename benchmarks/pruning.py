"""Active units against width and data size: does symmetrization undo over-pruning?

Mean field switches off more units than the data ask for (Trippe & Turner 2018). A wave of five
periods with noise of .1, 50 to 800 points, networks of 10 to 50 hidden units, three seeds, the same
steps for all methods. A unit is active if its share of the mean function varies by more than .01 of
the target's standard deviation. Held-out log-likelihood is in nats a point. Run ``python
benchmarks/pruning.py``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from regression_data import Stack, stack
from results_store import RESULTS, Run, Store
from stacked_evaluation import active_units, posterior_predictions, predictive_scores
from stacked_network import Layout
from stacked_objectives import METHODS
from stacked_training import of_all_rows, train

BENCHMARK = "pruning"
METHODS_COMPARED = ("mean field", "permutations", "permutations and scales")
SIZES, WIDTHS = (50, 200, 800), (10, 25, 50)
_NUM_TEST, _NOISE, _PERIODS = 500, 0.1, 5


def wave(num_rows: int, seeds: list[int]) -> Stack:
    """Points of the wave, others for each seed."""
    rows = []
    for seed in seeds:
        source = np.random.default_rng(seed)
        x = source.uniform(-1, 1, size=(num_rows + _NUM_TEST, 1))
        y = np.sin(_PERIODS * math.pi * x) * (1 + x) + _NOISE * source.normal(size=x.shape)
        rows.append(np.hstack([x, y]))
    together = np.concatenate(rows)
    first = np.arange(len(seeds)) * (num_rows + _NUM_TEST)
    train_rows, test_rows = np.arange(num_rows), num_rows + np.arange(_NUM_TEST)
    return stack(together, [(start + train_rows, start + test_rows) for start in first])


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--widths", type=int, nargs="*", default=list(WIDTHS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    store, seeds = Store(options.results), list(range(options.seeds))
    prior_scale, rate = (torch.full((len(seeds),), value) for value in (2.0, 0.01))
    settings = {"steps": options.steps, "draws": options.draws, "prior_scale": 2.0, "rate": 0.01}
    cells = [(width, size) for width in options.widths for size in options.sizes]
    for width, size in cells:
        layout, data = Layout(1, width), wave(size, seeds)
        for method in METHODS_COMPARED:
            runs = [Run(BENCHMARK, f"{width} units, {size} points", method, s) for s in seeds]
            if all(store.has(run, settings) for run in runs):
                continue
            trained = train(
                layout,
                METHODS[method](),
                of_all_rows(layout, data.x, data.y),
                seeds=seeds,
                prior_scale=prior_scale,
                learning_rate=rate,
                num_steps=options.steps,
            )
            predictions = posterior_predictions(layout, data, trained, seeds, options.draws)
            scores = predictive_scores(data, predictions)
            active = active_units(layout, data, trained)
            for k, run in enumerate(runs):
                found = {name: value[k].item() for name, value in scores.items()}
                found |= {"active_units": active[k].item(), "width": width, "rows": size}
                store.save(run, settings, found)
            print(width, size, method, active.tolist(), flush=True)


if __name__ == "__main__":
    main()
