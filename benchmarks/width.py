"""Time and peak memory of one evaluation and gradient of the correction, against width.

Bethe beside InfoNCE with 32 permutations evaluated naively: the density of all weights, once for
each permutation. Layers with 64 inputs and 10 outputs, units apart as at a fan-in start, or half
of them switched off (equal to the prior). Each measurement runs in a process of its own, so that
its peak memory is its own. Run ``python benchmarks/width.py``.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.distributions import Normal

import pyro_perm as pp
from pyro_perm.estimators.density import FactorizedDensity

WIDTHS = [50, 100, 200, 500, 1000, 2000, 4000]
METHODS = ["nothing", "Bethe", "naive InfoNCE K=32"]


def layer(width: int, off: float) -> FactorizedDensity:
    """A layer at a fan-in start, a share of whose units equal a standard normal prior."""
    torch.manual_seed(0)
    spec = {"hidden": {"w0": 0, "b0": 0, "w1": 1}}
    shapes = {"w0": (width, 64), "b0": (width,), "w1": (10, width)}
    symmetry = pp.PermutationSymmetry(spec, shapes=shapes)
    locs = {site: torch.randn(shape) / 8 for site, shape in shapes.items()}
    scales = {site: torch.full(shape, 0.05) for site, shape in shapes.items()}
    for site, axis in (("w0", 0), ("b0", 0), ("w1", 1)):
        for kind, value in ((locs, 0.0), (scales, 1.0)):
            kind[site].movedim(axis, 0)[: int(off * width)] = value
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


def measure(method: str, width: int, off: float) -> None:
    """Print seconds and peak megabytes of this process."""
    density = layer(width, off)
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "WIDTH", "OFF"))
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    options = parser.parse_args()
    if options.one:
        method, width, off = options.one
        measure(method, int(width), float(off))
        return
    for off in (0.0, 0.5):
        print(f"\n{off:.0%} of the units switched off; ms, and MB above doing nothing")
        print(f"{'units':>6s}" + "".join(f"{method:>28s}" for method in METHODS[1:]))
        for width in options.widths:
            cells, floor = [], 0.0
            for method in METHODS:
                command = [sys.executable, __file__, "--one", method, str(width), str(off)]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                seconds, peak = map(float, output.split())
                if method == "nothing":
                    floor = peak
                else:
                    cells.append(f"{1e3 * seconds:14.1f} ms {peak - floor:8.0f} MB")
            print(f"{width:6d}" + "".join(f"{cell:>28s}" for cell in cells))


if __name__ == "__main__":
    main()
