"""Is a cold posterior needed where the guide is symmetrized? Weights of the KL, .03 to 1.

Mean field often predicts better when its KL counts for less ("cold posteriors", Wenzel et al.
2020). If that only undoes what a symmetric posterior does to a guide with one mode, symmetrized
guides should need it less. Networks, splits, settings, start and random numbers are those of
``benchmarks/uci.py``, whose files give the symmetrized guides and mean field at weight 1; run it
first. Then

    python benchmarks/cold_posterior.py --data-dir ../shared/data/uci --set yacht
"""

from __future__ import annotations

from typing import Any

import uci
from regression_data import stack
from results_store import Run, Store
from stacked_evaluation import posterior_predictions, predictive_scores
from stacked_objectives import Posteriors, mean_field
from stacked_training import of_all_rows, train
from torch import Tensor

BENCHMARK = "cold-posterior"
WEIGHTS = (0.03, 0.1, 0.3)


def tempered(weight: float) -> Any:
    """Minus the weighted divergence."""

    def objective(q: Posteriors) -> Tensor:
        return weight * mean_field(q)

    return objective


def run(benchmark: uci.Benchmark, weight: float, num_splits: int, store: Store) -> None:
    """Splits that have no file yet, side by side."""
    settings = {**benchmark.settings(), "weight": weight}
    runs = [
        Run(BENCHMARK, benchmark.name, f"mean field, weight {weight:g}", split)
        for split in range(num_splits)
    ]
    missing = [each for each in runs if not store.has(each, settings)]
    if not missing:
        return
    seeds = [each.seed for each in missing]
    benchmark.report(f"weight {weight:g}, {len(seeds)} splits")
    data = stack(benchmark.rows, [benchmark.splits[seed] for seed in seeds])
    prior_scale, learning_rate = uci.per_run(settings, len(seeds))
    trained = train(
        benchmark.layout,
        tempered(weight),
        of_all_rows(benchmark.layout, data.x, data.y),
        seeds=seeds,
        prior_scale=prior_scale,
        learning_rate=learning_rate,
        num_steps=settings["num_steps"],
    )
    predictions = posterior_predictions(
        benchmark.layout, data, trained, seeds, settings["num_draws"]
    )
    scores = predictive_scores(data, predictions)
    for k, each in enumerate(missing):
        store.save(each, settings, {name: value[k].item() for name, value in scores.items()})


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    options = uci.options_of(arguments)
    store = Store(options.results)
    for name in options.set:
        benchmark = uci.Benchmark(name, options)
        for weight in WEIGHTS:
            run(benchmark, weight, options.splits, store)


if __name__ == "__main__":
    main()
