"""What training with Bethe gains over InfoNCE (K = 32) and plain AutoNormal.

All three start from the same parameters and take the same number of full-batch steps, for several
seeds. Printed for each: the certified lower bound of ELBO(q^G) in nats, the plain ELBO(q), and test
log-likelihood and error (RMSE of standardized targets, or error rate in percent) of the posterior
predictive, mean +- standard error over the seeds. Run ``python benchmarks/training_gain.py``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pyro
from networks import network, spec
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam

import pyro_perm as pp
from pyro_perm.demo.data import Dataset, load

CASES = {
    "diabetes-50": ("diabetes", [50], 10.0),
    "wine-50": ("wine", [50], 10.0),
    "digits-100": ("digits", [100], 30.0),
    "diabetes-30-30": ("diabetes", [30, 30], 5.0),
    "wine-30-30": ("wine", [30, 30], 5.0),
}
LEARNING_RATE, FINAL_LEARNING_RATE = 0.01, 0.0005
ESTIMATORS: dict[str, pp.Estimator | None] = {
    "AutoNormal": None,
    "InfoNCE K=32": pp.InfoNCE(32),
    "Bethe": pp.Bethe(),
}


@dataclass(frozen=True)
class Result:
    """What one training run ends with."""

    lower: float
    mean_field: float
    log_likelihood: float
    error: float


def train(
    case: str, estimator: pp.Estimator | None, seed: int, options: argparse.Namespace
) -> Result:
    """Train from the seed's start, then evaluate."""
    name, hidden, _ = CASES[case]
    data = load(name)
    classify = data.num_classes is not None
    model = network(data.train.x.shape[1], hidden, data.num_classes or 1, classify=classify)
    args = (data.train.x, data.train.y)
    symmetry = pp.PermutationSymmetry(spec(len(hidden)))
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.05)
    guide = base if estimator is None else pp.AutoSymmetrized(base, symmetry, estimator=estimator)
    guide(*args)
    pyro.set_rng_seed(seed)
    decay = (FINAL_LEARNING_RATE / LEARNING_RATE) ** (1 / options.steps)
    svi = SVI(model, guide, ClippedAdam({"lr": LEARNING_RATE, "lrd": decay}), Trace_ELBO())
    for _ in range(options.steps):
        svi.step(*args)
    elbo = pp.symmetrized_elbo(
        model, base, *args, num_samples=options.samples, symmetry=symmetry, progress=False
    )
    log_likelihood, error = test_scores(model, base, data, options.samples)
    return Result(elbo.lower, elbo.base, log_likelihood, error)


def test_scores(
    model: Callable, guide: Callable, data: Dataset, num_samples: int
) -> tuple[float, float]:
    """Mean log-likelihood, and error, of the posterior predictive on the held-out rows."""
    x, y = data.test.x, data.test.y
    prediction = pp.predict(model, guide, x, y, num_samples=num_samples, progress=False)
    if data.num_classes:
        error = 100 * (1 - pp.metrics.accuracy(prediction.mean, y))
    else:
        error = pp.metrics.rmse(prediction.mean, y)
    return prediction.log_predictive_density.mean().item(), error


def report(case: str, results: dict[str, list[Result]]) -> None:
    """Print the table of one case."""
    print(f"\n{case}")
    print(
        f"  {'':14s} {'ELBO(q^G) >=':>17s} {'ELBO(q)':>17s} {'test log-lik.':>17s} {'error':>15s}"
    )
    for method, runs in results.items():
        columns = [
            mean_and_error([getattr(run, field) for run in runs], digits)
            for field, digits in (
                ("lower", 1),
                ("mean_field", 1),
                ("log_likelihood", 3),
                ("error", 3),
            )
        ]
        print(f"  {method:14s} " + " ".join(f"{column:>17s}" for column in columns))
    wanted = CASES[case][2]
    for method in list(results)[:-1]:
        pairs = zip(results["Bethe"], results[method], strict=True)
        gains = [bethe.lower - other.lower for bethe, other in pairs]
        verdict = "PASS" if statistics.mean(gains) >= wanted else "MISS"
        print(f"  Bethe over {method}: {mean_and_error(gains, 1)} nats, wanted {wanted}: {verdict}")


def mean_and_error(values: list[float], digits: int) -> str:
    """Mean +- standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.{digits}f} +- {error:.{digits}f}"


def main() -> None:
    """Print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    for case in options.case:
        results: dict[str, list[Result]] = {method: [] for method in ESTIMATORS}
        for seed in range(options.seeds):
            for method, estimator in ESTIMATORS.items():
                results[method].append(train(case, estimator, seed, options))
                lower = results[method][-1].lower
                print(f"{case}, seed {seed}, {method}: {lower:.1f}", file=sys.stderr, flush=True)
        report(case, results)


if __name__ == "__main__":
    main()
