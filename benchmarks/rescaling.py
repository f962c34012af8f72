"""What training over scales gains, alone and with permutations.

Mean field, permutations, scales, and both start from the same parameters, and take as many
full-batch steps on the same random numbers. However it was trained, every guide is scored by the
certified lower bound of ELBO(q~) over permutations and scales, in nats, by test log-likelihood and
error (RMSE of standardized targets, or error rate in percent) of its posterior predictive, and by
how many units of the first layer are active. Differences are paired by seed; ``python
benchmarks/rescaling.py --case diabetes-50 wine-50 digits-60``. With ``--data-dir`` the cases of the
UCI repository are those of ``benchmarks/uci.py``, whose splits serve as seeds. One file a run is
kept in ``benchmarks/results/rescaling``; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from networks import network, spec_with_scales
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from regression_data import SETS, load_rows, stack, standard_splits
from results_store import RESULTS, Mean, Run, Store
from torch import Tensor

import pyro_perm as pp
from pyro_perm.demo.data import load

CASES = {
    "diabetes-50": ("diabetes", [50]),
    "wine-50": ("wine", [50]),
    "digits-60": ("digits", [60]),
    "diabetes-30-30": ("diabetes", [30, 30]),
    "diabetes-20-20-20": ("diabetes", [20, 20, 20]),
    **{f"{name}-50": (name, [50]) for name in SETS},
    **{f"{name}-30-30": (name, [30, 30]) for name in ("yacht", "energy")},
    **{f"{name}-20-20-20": (name, [20, 20, 20]) for name in ("yacht", "energy")},
}
METHODS = ("mean field", "permutations", "scales", "both")
LEARNING_RATE, FINAL_LEARNING_RATE = 0.01, 0.0005
ACTIVE = 0.01
SCORES = {"lower": 1, "log_likelihood": 3, "error": 3, "active": 1}


class Data(NamedTuple):
    """Rows to train on and to test on; the number of classes, or None for regression."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int | None


def data_of(name: str, seed: int, folder: Path | None) -> Data:
    """One split of a set; those of scikit-learn have the same for all seeds."""
    if name not in SETS:
        data = load(name)
        return Data(*data.train.__dict__.values(), *data.test.__dict__.values(), data.num_classes)
    rows = load_rows(name, folder)
    split = stack(rows, standard_splits(len(rows))[seed : seed + 1])
    return Data(split.x[0], split.y[0], split.test_x[0], split.test_y[0], None)


def symmetry_of(method: str, num_hidden: int) -> pp.PermutationSymmetry | None:
    """What a method symmetrizes over."""
    both = spec_with_scales(num_hidden)
    change = {
        "permutations": {"scale": 0},
        "scales": {"permute": False},
        "both": {},
    }
    if method not in change:
        return None
    return pp.PermutationSymmetry(
        {
            group: {site: replace(axis, **change[method]) for site, axis in sites.items()}
            for group, sites in both.items()
        }
    )


def run(case: str, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train from the seed's start, then score."""
    name, hidden = CASES[case]
    data = data_of(name, seed, options.data_dir)
    inputs, outputs = data.x.shape[1], data.num_classes or 1
    model = network(inputs, hidden, outputs, classify=data.num_classes is not None)
    args = (data.x, data.y)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.05)
    base(*args)
    symmetry = symmetry_of(method, len(hidden))
    if symmetry is None:
        loss = pp.FunctionalMeanField_ELBO()
    else:
        loss = pp.FunctionalSymmetrized_ELBO(symmetry=symmetry)
    pyro.set_rng_seed(seed)
    decay = (FINAL_LEARNING_RATE / LEARNING_RATE) ** (1 / options.steps)
    svi = SVI(model, base, ClippedAdam({"lr": LEARNING_RATE, "lrd": decay}), loss)
    start = time.perf_counter()
    losses = [svi.step(*args) for _ in range(options.steps)]
    seconds = time.perf_counter() - start
    pyro.set_rng_seed(seed)
    elbo = pp.symmetrized_elbo(
        model,
        base,
        *args,
        num_samples=options.samples,
        symmetry=symmetry_of("both", len(hidden)),
        progress=False,
    )
    pyro.set_rng_seed(seed)
    prediction = pp.predict(
        model, base, data.test_x, data.test_y, num_samples=options.samples, progress=False
    )
    if data.num_classes:
        error = 100 * (1 - pp.metrics.accuracy(prediction.mean, data.test_y))
    else:
        error = pp.metrics.rmse(prediction.mean, data.test_y)
    tenth = max(1, options.steps // 10)
    return {
        "lower": elbo.lower,
        "upper": elbo.upper,
        "lower_standard_error": elbo.lower_standard_error,
        "base": elbo.base,
        "information": elbo.mutual_information.lower,
        "scales": elbo.mutual_information.scales,
        "log_likelihood": prediction.log_predictive_density.mean().item(),
        "error": error,
        "active": active_units(base, data, hidden[0]),
        "seconds": seconds,
        "losses": [statistics.mean(losses[k : k + tenth]) for k in range(0, len(losses), tenth)],
    }


@torch.no_grad()
def active_units(base: AutoNormal, data: Data, num_units: int) -> int:
    """Units of the first layer whose output, times their largest outgoing weight, varies."""
    w0, b0, w1 = (getattr(base.locs, site) for site in ("w0", "b0", "w1"))
    spread = torch.relu(data.x @ w0.T + b0).std(0) * w1.abs().amax(0)
    assert len(spread) == num_units
    return int((spread > ACTIVE).sum())


def report(case: str, results: dict[str, list[dict[str, Any]]]) -> None:
    """Print the table of one case."""
    print(f"\n{case}, {len(results['both'])} seeds")
    heads = ("ELBO(q~) >=", "test log-lik.", "error", "active units")
    print(f"  {'':17s}" + "".join(f" {head:>18s}" for head in heads))
    for method, runs in results.items():
        columns = [Mean.of([r[s] for r in runs]).text(digits) for s, digits in SCORES.items()]
        print(f"  {method:17s}" + "".join(f" {column:>18s}" for column in columns))
    for other in METHODS[:-1]:
        columns = []
        for score, digits in SCORES.items():
            pairs = zip(results["both"], results[other], strict=True)
            columns.append(Mean.of([a[score] - b[score] for a, b in pairs]).text(digits))
        print(f"  {'over ' + other:17s}" + "".join(f" {column:>18s}" for column in columns))


def results_of(
    benchmark: str,
    methods: Sequence[str],
    run: Callable[[str, str, int, argparse.Namespace], dict[str, Any]],
    options: argparse.Namespace,
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Compute what has no file yet: case -> method -> scores, seed by seed."""
    store = Store(options.results)
    settings = {"num_steps": options.steps, "num_samples": options.samples}
    results: dict[str, dict[str, list[dict[str, Any]]]] = {case: {} for case in options.case}
    for seed, case, method in product(range(options.seeds), options.case, methods):
        each = Run(benchmark, case, method, seed)
        if not store.has(each, settings):
            with warnings.catch_warnings():
                # Of two layers that follow on each other one is rescaled.
                warnings.filterwarnings("ignore", "the units of group")
                store.save(each, settings, run(case, method, seed, options))
            print(f"{case}, {method}, seed {seed}", file=sys.stderr, flush=True)
        results[case].setdefault(method, []).append(store.read(each)["scores"])
    return results


def read_options(description: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--case", nargs="*", choices=CASES)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--data-dir", type=Path, help="where the files of the UCI repository are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.set_defaults(**defaults)
    return parser.parse_args()


def main() -> None:
    """Compute what is missing, and print a table for each case."""
    options = read_options(__doc__, case=list(CASES)[:3], seeds=5, steps=4000, samples=200)
    for case, results in results_of("rescaling", METHODS, run, options).items():
        report(case, results)


if __name__ == "__main__":
    main()
