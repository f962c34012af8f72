"""Time and peak memory of one evaluation and gradient of the correction, against width.

Bethe beside InfoNCE with 32 permutations evaluated naively: the density of all weights, once for
each permutation, measured in turn, as CPU time. Layers with 64 inputs and 10 outputs, units apart
as at a fan-in start, or so wide that some come near each other, or half of them switched off (near
the prior, as training leaves them). Peaks of memory are those of processes that do nothing else.

The last column is what speed costs, beside all pairs in double precision without screening: of the
value, in nats, and of the gradient with respect to moves of locs by their scales, as a share of its
norm. Run ``OMP_NUM_THREADS=1 python benchmarks/width.py``.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch.distributions import Normal

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import _screening
from pyro_perm.permanent import _precision
from pyro_perm.symmetry.actions import permute

WIDTHS = [50, 100, 200, 500, 1000, 2000, 4000]
METHODS = ["Bethe", "naive InfoNCE K=32"]
_REPEATS = 9


class Case(NamedTuple):
    """How the units lie: their scales, and the share that is near a standard normal prior."""

    scale: float
    off: float


# How far units that are off are from the prior, in each loc and log-scale: .75 nats a unit.
_OFF = 0.1
CASES = {"apart": Case(0.05, 0.0), "near": Case(0.15, 0.0), "half off": Case(0.05, 0.5)}


def layer(width: int, case: Case) -> FactorizedDensity:
    """A layer at a fan-in start, all of whose units are near, or some switched off."""
    torch.manual_seed(0)
    spec = {"hidden": {"w0": 0, "b0": 0, "w1": 1}}
    shapes = {"w0": (width, 64), "b0": (width,), "w1": (10, width)}
    symmetry = pp.PermutationSymmetry(spec, shapes=shapes).group
    locs = {site: torch.randn(shape) / 8 for site, shape in shapes.items()}
    scales = {site: torch.full(shape, case.scale) for site, shape in shapes.items()}
    for site, axis in (("w0", 0), ("b0", 0), ("w1", 1)):
        loc, scale = (
            kind[site].movedim(axis, 0)[: int(case.off * width)] for kind in (locs, scales)
        )
        loc.normal_(0.0, _OFF)
        scale.copy_((_OFF * torch.randn(scale.shape)).exp())
    for tensor in (*locs.values(), *scales.values()):
        tensor.requires_grad_()
    values = {site: locs[site] + scales[site] * torch.randn(shapes[site]) for site in shapes}
    return FactorizedDensity(symmetry, values, locs, scales, torch.Size())


def naive_info_nce(density: FactorizedDensity) -> torch.Tensor:
    """Theorem 4.3 by 32 evaluations of the whole density."""

    def log_q(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(
            Normal(density.locs[s], density.scales[s])
            .log_prob(v)
            .sum(tuple(range(-density.locs[s].dim(), 0)))
            for s, v in values.items()
        )

    moved = density.symmetry.apply(density.symmetry.sample((31,)), density.values)
    own = log_q(density.values)
    return torch.cat([own.unsqueeze(0), log_q(moved)]).logsumexp(0) - own


Run = Callable[[FactorizedDensity], torch.Tensor]


def run_of(method: str) -> Run:
    """What a method evaluates."""
    runs: dict[str, Run] = {
        "nothing": lambda density: sum(value.sum() for value in density.values.values()),
        "Bethe": pp.Bethe().log_ratio,
        "naive InfoNCE K=32": naive_info_nce,
    }
    return runs[method]


def evaluate(run: Run, density: FactorizedDensity) -> tuple[float, torch.Tensor]:
    """Value, and gradient with respect to moves of locs by their scales."""
    value = run(density)
    grads = torch.autograd.grad(
        value, [*density.locs.values()], retain_graph=True, materialize_grads=True
    )
    each = zip(grads, density.scales.values(), strict=True)
    return value.item(), torch.cat([(grad * scale).flatten().double() for grad, scale in each])


def times(width: int, case: str) -> list[float]:
    """Median CPU milliseconds of every method."""
    density = layer(width, CASES[case])
    runs = [run_of(method) for method in METHODS]
    milliseconds: list[list[float]] = [[] for _ in runs]
    for _ in range(_REPEATS):
        for run, record in zip(runs, milliseconds, strict=True):
            start = time.process_time()
            evaluate(run, density)
            record.append(1e3 * (time.process_time() - start))
    return [statistics.median(each[1:]) for each in milliseconds]


def peak(method: str, width: int, case: str) -> float:
    """Peak megabytes of this process."""
    density, run = layer(width, CASES[case]), run_of(method)
    for _ in range(3):
        evaluate(run, density)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost_of_speed(width: int, case: str) -> tuple[float, float]:
    """What screening and single precision change of value and gradient."""
    density = layer(width, CASES[case])
    value, gradient = evaluate(pp.Bethe().log_ratio, density)
    _screening._WORTHWHILE = _precision._LARGE = permute._WORTH_SINGLE_PRECISION = math.inf
    exact_value, exact_gradient = evaluate(pp.Bethe().log_ratio, density)
    change = (gradient - exact_gradient).norm() / exact_gradient.norm().clamp_min(1e-12)
    return abs(value - exact_value), change.item()


def row(width: int, case: str) -> str:
    """A row of the table, whose numbers come from processes of their own."""

    def fork(function: Callable, *arguments: object) -> Any:
        with get_context("fork").Pool(1) as pool:
            return pool.apply(function, arguments)

    floor, *peaks = (fork(peak, method, width, case) for method in ["nothing", *METHODS])
    each = zip(fork(times, width, case), peaks, strict=True)
    cells = [f"{time:14.1f} ms {peak - floor:8.0f} MB" for time, peak in each]
    value, gradient = fork(cost_of_speed, width, case)
    cells.append(f"{value:.1e}, {gradient:.1e}")
    return f"{width:6d}" + "".join(f"{cell:>28s}" for cell in cells)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    for case in options.cases:
        print(f"\nunits {case}; CPU ms, and MB above doing nothing")
        titles = [*METHODS, "speed changes"]
        print(f"{'units':>6s}" + "".join(f"{title:>28s}" for title in titles))
        for width in options.widths:
            print(row(width, case), flush=True)


if __name__ == "__main__":
    main()
