"""Time and peak memory of one evaluation and gradient of the correction, against width.

Bethe beside InfoNCE with 32 permutations evaluated naively: the density of all weights, once for
each permutation. Layers with 64 inputs and 10 outputs, units apart as at a fan-in start, or so wide
that some come near each other, or half of them switched off (equal to the prior). Each measurement
runs in a process of its own, so that its peak memory is its own.

The last column is what screening changes: of the value, in nats, and of the gradient, in nats for a
move of a loc by its scale, the largest of all. Run ``python benchmarks/width.py``.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.distributions import Normal

import pyro_perm as pp
import pyro_perm.estimators._screening as screen_module
from pyro_perm.density.factorized import FactorizedDensity

WIDTHS = [50, 100, 200, 500, 1000, 2000, 4000]
METHODS = ["nothing", "Bethe", "naive InfoNCE K=32"]


class Case(NamedTuple):
    """How the units lie: their scales, and the share that equals a standard normal prior."""

    scale: float
    off: float


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
        for kind, value in ((locs, 0.0), (scales, 1.0)):
            kind[site].movedim(axis, 0)[: int(case.off * width)] = value
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


def measure(method: str, width: int, case: str) -> None:
    """Print seconds and peak megabytes of this process."""
    density = layer(width, CASES[case])
    run: Callable[[FactorizedDensity], torch.Tensor] = {
        "nothing": lambda d: sum(v.sum() for v in d.values.values()),
        "Bethe": pp.Bethe().log_ratio,
        "naive InfoNCE K=32": naive_info_nce,
    }[method]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.autograd.grad(
            run(density), [*density.locs.values()], retain_graph=True, allow_unused=True
        )
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(statistics.median(seconds[1:]), peak)


def screening(width: int, case: str) -> None:
    """Print what screening changes of value and gradient."""
    density = layer(width, CASES[case])
    results = []
    for worthwhile in (0, math.inf):
        screen_module._WORTHWHILE = worthwhile
        value = pp.Bethe().log_ratio(density)
        grads = torch.autograd.grad(
            value, [*density.locs.values()], retain_graph=True, materialize_grads=True
        )
        scaled = [grad * s for grad, s in zip(grads, density.scales.values(), strict=True)]
        results.append((value.item(), torch.cat([grad.flatten() for grad in scaled])))
    (screened, grads), (whole, whole_grads) = results
    print(abs(screened - whole), (grads - whole_grads).abs().max().item())


def in_a_process(*arguments: str) -> tuple[float, float]:
    """The two numbers that a process of its own prints."""
    command = [sys.executable, __file__, "--one", *arguments]
    first, second = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    return float(first), float(second)


def row(width: int, case: str) -> str:
    """A row of the table."""
    _, floor = in_a_process("nothing", str(width), case)
    cells = []
    for method in METHODS[1:]:
        seconds, peak = in_a_process(method, str(width), case)
        cells.append(f"{1e3 * seconds:14.1f} ms {peak - floor:8.0f} MB")
    value, gradient = in_a_process("screening", str(width), case)
    cells.append(f"{value:.1e}, {gradient:.1e}")
    return f"{width:6d}" + "".join(f"{cell:>28s}" for cell in cells)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "WIDTH", "CASE"))
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    options = parser.parse_args()
    if options.one:
        what, width, case = options.one
        if what == "screening":
            screening(int(width), case)
        else:
            measure(what, int(width), case)
        return
    for case in CASES:
        print(f"\nunits {case}; ms, and MB above doing nothing")
        titles = [*METHODS[1:], "screening changes"]
        print(f"{'units':>6s}" + "".join(f"{title:>28s}" for title in titles))
        for width in options.widths:
            print(row(width, case), flush=True)


if __name__ == "__main__":
    main()
