r"""Estimators of mutual information, the literature's and the package's, on trained posteriors.

What is estimated is ``I(g; w) = E_q[log q(w) - log q^G(w)]`` of a factorized Gaussian, trained on
diabetes data by mean field or for permutations. The conditional ``q(w | g)`` is known, so that
every estimator has its best critic:

* InfoNCE, the paper's: ``K - 1`` uniform permutations beside the true one; a lower bound;
* leave-one-out: the same without the true one; an upper bound;
* NWJ (Nguyen, Wainwright & Jordan 2010): ``1 + E[log q(w)/m(w)] - E[q(g w)/m(w)]`` with a baseline
  ``m`` from ``K`` permutations and the last mean over ``K`` others (Poole et al. 2019); a lower
  bound;
* Donsker-Varadhan, which MINE (Belghazi et al. 2018) trains on: ``E[log q(w)/m(w)]`` minus
  ``log E[q(g w)/m(w)]``, the latter mean over sixteen draws of ``w`` with ``K`` permutations each;
  no bound once that mean is estimated;
* Bethe: the Bethe permanent, and ``pp.Bethe()``, which corrects it for its bias; no bounds;
* importance sampling and annealed importance sampling, a lower and an upper bound each.

Bias and standard deviation are over the same draws of ``w``; the reference is the exact sum at 14
units, and importance sampling with 1000 permutations at 50. Run ``python
benchmarks/information.py``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results_store import RESULTS, Run, Store
from stacked_network import Layout
from stacked_objectives import METHODS
from stacked_training import of_all_rows, train
from torch import Tensor

import pyro_perm as pp
from pyro_perm.demo.data import load
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators.info_nce import uniform_log_ratios
from pyro_perm.permanent import bethe_permanent

BENCHMARK = "information"
WIDTHS = (14, 50)
SAMPLES = (8, 32, 128)
_DRAWS_OF_ONE_ESTIMATE = 16

# Values of I, one a draw of w or one for several of them: shape (estimates,), in nats.
Estimate = Callable[[FactorizedDensity], Tensor]


def nwj(num: int) -> Estimate:
    """Of Nguyen, Wainwright & Jordan, one value a draw."""

    def estimate(density: FactorizedDensity) -> Tensor:
        log_baseline = _log_mean(uniform_log_ratios(density, num))
        log_partition = _log_mean(uniform_log_ratios(density, num)) - log_baseline
        return 1 - log_baseline - log_partition.exp()

    return estimate


def donsker_varadhan(num: int) -> Estimate:
    """One value for sixteen draws."""

    def estimate(density: FactorizedDensity) -> Tensor:
        log_baseline = _log_mean(uniform_log_ratios(density, num))
        log_partition = _log_mean(uniform_log_ratios(density, num)) - log_baseline
        joint, product = (
            part.unflatten(0, (-1, _DRAWS_OF_ONE_ESTIMATE))
            for part in (log_baseline, log_partition)
        )
        return -joint.mean(-1) - _log_mean(product.T)

    return estimate


def bethe_without_correction(density: FactorizedDensity) -> Tensor:
    """``log n! + sum_i L_ii - log perm_B``."""
    pairs = density.unit_pairs("hidden", ["units"])
    own = pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
    return density.log_volume + own - bethe_permanent(pairs).log_permanent


def information(estimator: pp.Estimator) -> Estimate:
    """``log q - log q^G`` by one of the package's estimators."""
    return lambda density: -estimator.log_ratio(density)


def upper(estimator: pp.Estimator) -> Estimate:
    """The upper bound of one that has two."""

    def estimate(density: FactorizedDensity) -> Tensor:
        found = estimator.bounds(density).upper
        assert found is not None
        return found

    return estimate


def estimates() -> dict[str, Estimate]:
    """All that are compared, by their names."""
    found: dict[str, Estimate] = {}
    for num in SAMPLES:
        found[f"InfoNCE, K = {num}"] = information(pp.InfoNCE(num))
        found[f"leave-one-out, K = {num}"] = information(pp.LeaveOneOut(num))
        found[f"NWJ, K = {num}"] = nwj(num)
        found[f"Donsker-Varadhan, K = {num}"] = donsker_varadhan(num)
        sampled = pp.ImportanceSampled(num)
        found[f"importance sampling, lower, K = {num}"] = information(sampled)
        found[f"importance sampling, upper, K = {num}"] = upper(sampled)
    for num in (25, 100):
        annealed = pp.AnnealedImportanceSampled(num, num_chains=2)
        found[f"annealed, lower, {num} steps"] = information(annealed)
        found[f"annealed, upper, {num} steps"] = upper(annealed)
    found["Bethe permanent"] = bethe_without_correction
    found["Bethe, corrected"] = information(pp.Bethe())
    return found


def reference(density: FactorizedDensity) -> Tensor:
    """The truth, draw by draw, or what is known of it to some hundredths of a nat."""
    size = density.symmetry.groups["hidden"]
    if size <= 16:
        return -pp.Exact().log_ratio(density)
    bounds = pp.ImportanceSampled(1000).bounds(density)
    return (bounds.lower + bounds.upper) / 2


def trained_density(method: str, width: int, num_steps: int, num_draws: int) -> FactorizedDensity:
    """Draws from a posterior of a network on diabetes data."""
    data = load("diabetes").train
    layout = Layout(data.x.shape[1], width)
    trained = train(
        layout,
        METHODS[method](),
        of_all_rows(layout, data.x.float().unsqueeze(0), data.y.float().unsqueeze(0)),
        seeds=[0],
        prior_scale=torch.ones(1),
        learning_rate=torch.full((1,), 0.01),
        num_steps=num_steps,
    )
    torch.manual_seed(1)
    locs, scales = (layout.units(part[0]).double() for part in (trained.loc, trained.scale))
    draws = locs + scales * torch.randn(num_draws, *locs.shape, dtype=locs.dtype)
    kinds = ({"units": part} for part in (draws, locs, scales))
    return FactorizedDensity(layout.group, *kinds, torch.Size([num_draws]))


@torch.no_grad()
def compare(density: FactorizedDensity, estimate: Estimate, truth: Tensor) -> dict[str, Any]:
    """Bias with its standard error, standard deviation for one draw of ``w``, time for one.

    Nothing where they are beyond the range of numbers.
    """
    torch.manual_seed(2)
    begin = time.perf_counter()
    values = estimate(density)
    seconds = time.perf_counter() - begin
    num = density.batch_shape.numel() // len(values)
    difference = values - truth.unflatten(0, (-1, num)).mean(-1)
    deviation = difference.std().item()
    in_range = math.isfinite(deviation)
    return {
        "bias": difference.mean().item() if in_range else None,
        "error": deviation / math.sqrt(len(values)) if in_range else None,
        "deviation": deviation * math.sqrt(num) if in_range else None,
        "milliseconds": 1000 * seconds / density.batch_shape.numel(),
        "reference": truth.mean().item(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--widths", type=int, nargs="*", default=list(WIDTHS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=128)
    options = parser.parse_args(arguments)
    store, settings = Store(options.results), {"steps": options.steps, "draws": options.draws}
    for method in ("mean field", "permutations"):
        for width in options.widths:
            data = f"{method}, {width} units"
            missing = {
                name: estimate
                for name, estimate in estimates().items()
                if not store.has(Run(BENCHMARK, data, name, 0), settings)
            }
            if not missing:
                continue
            density = trained_density(method, width, options.steps, options.draws)
            truth = reference(density)
            for name, estimate in missing.items():
                scores = compare(density, estimate, truth)
                store.save(Run(BENCHMARK, data, name, 0), settings, scores)
                print(data, name, scores, flush=True)


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


if __name__ == "__main__":
    main()
