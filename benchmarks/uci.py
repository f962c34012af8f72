"""Test log-likelihood on the regression sets of the UCI repository: 20 splits, 50 ReLU units.

Protocol of Hernandez-Lobato & Adams 2015: inputs and target z-scored on the training rows, scores
in the target's own units, mean and standard error over the splits. Noise is learned, with a prior
of its own. Hyper-parameters (learning rate and prior scale) are those with which **mean field**
predicts best on a held-out fifth of the first split's training rows, and serve all methods; so do
the number of steps, the start and the random numbers. Run

    python benchmarks/uci.py --data-dir ../shared/data/uci --set yacht --method "mean field"

Laplace's approximation wants ``pip install laplace-torch``, and is left out without it.

Every run is one file in ``benchmarks/results/uci``; what is there is not computed again, and a
stack of runs that was interrupted goes on from its last checkpoint. ``python
docs/write_results.py`` writes the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from point_networks import (
    dropout_predictions,
    ensemble_predictions,
    laplace_prediction,
    train_points,
)
from regression_data import SETS, Stack, load_rows, stack, standard_splits, validation_split
from results_store import RESULTS, Run, Store
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

BENCHMARK = "uci"
# Where the targets are noisier the bound stops moving sooner.
NUM_STEPS = {"yacht": 8000, "energy": 16000, "concrete": 12000, "wine-red": 4000}
NUM_BOUND_DRAWS, NUM_PERMUTATIONS = 50, 16
PRIOR_SCALES, LEARNING_RATES = (1.0, 2.0, 4.0), (0.003, 0.01)
DROPOUT_RATES = (0.005, 0.01, 0.05, 0.1)
NUM_MEMBERS = 5
ENSEMBLE, DROPOUT, LAPLACE = "deep ensemble", "MC dropout", "Laplace"
PEERS = (ENSEMBLE, DROPOUT, LAPLACE)
SELECTION = "selection"


class Benchmark:
    """One data set, and what is asked for.

    :param name: of the set.
    :param options: the command line's.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.store = Store(options.results)
        self.rows = load_rows(name, options.data_dir)
        self.splits = standard_splits(len(self.rows))
        self.layout = Layout(self.rows.shape[1] - 1, options.units)
        self.num_steps = options.steps or NUM_STEPS[name]

    def report(self, line: str) -> None:
        """Tell how far it is."""
        print(f"{self.name}: {line}", file=sys.stderr, flush=True)

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters: read from the file of the selection, or selected."""
        run = Run(BENCHMARK, self.name, SELECTION, 0)
        asked = {
            "prior_scales": PRIOR_SCALES,
            "learning_rates": LEARNING_RATES,
            "dropout_rates": DROPOUT_RATES,
            "num_steps": self.num_steps,
            "num_units": self.options.units,
        }
        if not self.store.has(run, asked):
            self.report("hyper-parameters")
            self.store.save(run, asked, self.select())
        chosen = self.store.read(run)["scores"]
        return {
            "prior_scale": chosen["prior_scale"],
            "learning_rate": chosen["learning_rate"],
            "num_steps": self.num_steps,
            "num_units": self.options.units,
            "num_draws": self.options.draws,
            "num_bound_draws": NUM_BOUND_DRAWS,
            "num_permutations": NUM_PERMUTATIONS,
        }

    def select(self) -> dict[str, Any]:
        """Scores on the validation rows of the first split, mean field's and MC dropout's."""
        grid = torch.tensor(list(product(PRIOR_SCALES, LEARNING_RATES)))
        data = stack(self.rows, [validation_split(self.splits[0][0])] * len(grid))
        seeds = [0] * len(grid)
        trained = train(
            self.layout,
            METHODS["mean field"](),
            of_all_rows(self.layout, data.x, data.y),
            seeds=seeds,
            prior_scale=grid[:, 0],
            learning_rate=grid[:, 1],
            num_steps=self.num_steps,
        )
        found = predictive_scores(
            data, posterior_predictions(self.layout, data, trained, seeds, self.options.draws)
        )["log_likelihood"]
        best = grid[found.argmax()]
        return {
            "prior_scale": best[0].item(),
            "learning_rate": best[1].item(),
            "dropout_rate": self.select_dropout(*best),
            "validation": [
                [*point, score] for point, score in zip(grid.tolist(), found.tolist(), strict=True)
            ],
        }

    def select_dropout(self, prior_scale: Tensor, learning_rate: Tensor) -> float:
        """The rate at which MC dropout predicts best."""
        rates = torch.tensor(DROPOUT_RATES)
        data = stack(self.rows, [validation_split(self.splits[0][0])] * len(rates))
        weights, _ = train_points(
            self.layout,
            data,
            seeds=[0] * len(rates),
            prior_scale=prior_scale.expand(len(rates)),
            learning_rate=learning_rate.expand(len(rates)),
            num_steps=self.num_steps,
            dropout=rates,
        )
        predictions = dropout_predictions(self.layout, data, weights, rates, self.options.draws)
        return rates[predictive_scores(data, predictions)["log_likelihood"].argmax()].item()

    def run(self, method: str) -> None:
        """All splits that have no file yet, side by side."""
        settings = self.settings()
        runs = [Run(BENCHMARK, self.name, method, k) for k in range(self.options.splits)]
        missing = [run for run in runs if not self.store.has(run, settings)]
        if not missing:
            return
        self.report(f"{method}, {len(missing)} splits")
        data = stack(self.rows, [self.splits[run.seed] for run in missing])
        seeds = [run.seed for run in missing]
        compute = self.peer if method in PEERS else self.variational
        for run, scores in zip(missing, compute(method, data, seeds, settings), strict=True):
            self.store.save(run, settings, scores)

    def variational(
        self, method: str, data: Stack, seeds: list[int], settings: dict[str, Any]
    ) -> Iterable[dict[str, Any]]:
        """Scores of each run."""
        prior_scale, learning_rate = per_run(settings, len(seeds))
        names = "-".join(map(str, (self.name, method, settings["num_steps"], *seeds)))
        checkpoint = self.options.cache and self.options.cache / f"{names.replace(' ', '_')}.pt"
        trained = train(
            self.layout,
            METHODS[method](),
            of_all_rows(self.layout, data.x, data.y),
            seeds=seeds,
            prior_scale=prior_scale,
            learning_rate=learning_rate,
            num_steps=settings["num_steps"],
            checkpoint=checkpoint,
            report=self.report,
        )
        yield from self.scored(data, trained, seeds, settings)

    def scored(
        self, data: Stack, trained: Trained, seeds: list[int], settings: dict[str, Any]
    ) -> Iterable[dict[str, Any]]:
        """Scores of trained posteriors, run by run."""
        prior_scale, _ = per_run(settings, len(seeds))
        predictions = posterior_predictions(
            self.layout, data, trained, seeds, settings["num_draws"]
        )
        scores = predictive_scores(data, predictions)
        bounds = certified_bounds(
            self.layout,
            data,
            trained,
            prior_scale,
            num_draws=settings["num_bound_draws"],
            num_permutations=settings["num_permutations"],
        )
        active = active_units(self.layout, data, trained)
        for k in range(len(seeds)):
            yield {
                **{name: value[k].item() for name, value in scores.items()},
                "bounds": {
                    kind: {name: value[k].item() for name, value in bound.items()}
                    for kind, bound in bounds.items()
                },
                "active_units": active[k].item(),
                "noise": trained.loc[k, -1].exp().item() * data.unit[k].item(),
                "seconds": trained.seconds / len(seeds),
                "trajectory": trained.trajectory[:, k].tolist(),
            }

    def peer(
        self, method: str, data: Stack, seeds: list[int], settings: dict[str, Any]
    ) -> Iterable[dict[str, Any]]:
        """Scores of each run of a method that knows nothing of ELBOs."""
        num = len(seeds)
        members = NUM_MEMBERS if method == ENSEMBLE else 1
        rate = None
        if method == DROPOUT:
            chosen = self.store.read(Run(BENCHMARK, self.name, SELECTION, 0))["scores"]
            rate = torch.full((num,), chosen["dropout_rate"])
        everyone = data.take(torch.arange(num).repeat(members))
        prior_scale, learning_rate = per_run(settings, members * num)
        weights, seconds = train_points(
            self.layout,
            everyone,
            seeds=[seed + 1000 * member for member in range(members) for seed in seeds],
            prior_scale=prior_scale,
            learning_rate=learning_rate,
            num_steps=settings["num_steps"],
            dropout=rate,
        )
        if method == ENSEMBLE:
            predictions = ensemble_predictions(
                self.layout, data, weights.unflatten(0, (members, num))
            )
        elif rate is not None:
            predictions = dropout_predictions(
                self.layout, data, weights, rate, settings["num_draws"]
            )
        else:
            each = [laplace_prediction(self.layout, data, weights, k) for k in range(num)]
            predictions = [tuple(torch.cat(kind) for kind in zip(*each, strict=True))]
        scores = predictive_scores(data, predictions)
        for k in range(num):
            yield {
                **{name: value[k].item() for name, value in scores.items()},
                "seconds": seconds / num,
            }


def per_run(settings: dict[str, Any], num: int) -> tuple[Tensor, Tensor]:
    """Prior scales and learning rates, shape ``(num,)``."""
    chosen = (settings["prior_scale"], settings["learning_rate"])
    prior_scale, learning_rate = (torch.full((num,), value) for value in chosen)
    return prior_scale, learning_rate


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    methods = [*METHODS, *PEERS]
    here = Path(__file__).parent
    beside = here.parent.parent / "shared" / "data" / "uci"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--method", nargs="*", choices=methods, default=methods, metavar="METHOD")
    parser.add_argument("--data-dir", type=Path, default=beside if beside.is_dir() else None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=here / ".checkpoints")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--steps", type=int, help="by default what each set needs")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--units", type=int, default=50)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, method by method."""
    options = options_of(arguments)
    if not find_spec("laplace"):
        options.method = [method for method in options.method if method != LAPLACE]
        print("laplace-torch is not installed: no Laplace", file=sys.stderr)
    for method, name in product(options.method, options.set):
        Benchmark(name, options).run(method)


if __name__ == "__main__":
    main()
