"""Cost of an SVI step: AutoSymmetrized, both routes, against plain AutoNormal.

Every step is timed for all methods in turn, so that noise of the machine hits them alike; printed
are medians, and medians of the paired ratios. Rounds are short and start anew, so that the units
stay as they were: apart as at a fan-in start, or half of them switched off. Losses without traces
step with an optimizer of PyTorch, the others with Pyro's. Run ``python benchmarks/step_cost.py``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from networks import network, spec, spec_with_scales
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import Tensor

import pyro_perm as pp

SHAPES = [(10, 50, 1), (64, 100, 10), (784, 400, 10)]
BATCH = 128


def data(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """A random batch of inputs and targets."""
    x = torch.randn(BATCH, inputs)
    return x, torch.randn(BATCH) if outputs == 1 else torch.randint(outputs, (BATCH,))


def base_guide(model: Callable, args: tuple[Tensor, Tensor], switched_off: float) -> AutoNormal:
    """A guide with a share of its units switched off, the same at every call."""
    pyro.set_rng_seed(0)
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    guide(*args)
    switch_off(guide, switched_off)
    return guide


def steppers(
    shape: tuple[int, int, int], switched_off: float, clock: Callable[[], float]
) -> dict[str, Callable[[], float]]:
    """A function that takes and times one SVI step, for each method."""
    inputs, units, outputs = shape
    model = network(inputs, [units], outputs, classify=outputs > 1)
    args = data(inputs, outputs)

    def base() -> AutoNormal:
        return base_guide(model, args, switched_off)

    def stepper(guide: Callable, loss: Trace_ELBO) -> Callable[[], float]:
        svi = SVI(model, guide, Adam({"lr": 1e-3}), loss)

        def step() -> float:
            start = clock()
            svi.step(*args)
            return clock() - start

        return step

    def functional(loss: pp.FunctionalMeanField_ELBO, guide: Callable) -> Callable[[], float]:
        module = loss(model, guide)
        module(*args)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

        def step() -> float:
            start = clock()
            optimizer.zero_grad()
            module(*args).backward()
            optimizer.step()
            return clock() - start

        return step

    symmetry = pp.PermutationSymmetry(spec(1))
    scales = pp.PermutationSymmetry(spec_with_scales(1))
    return {
        "AutoNormal, Trace_ELBO": stepper(base(), Trace_ELBO()),
        "AutoSymmetrized, Trace_ELBO": stepper(pp.AutoSymmetrized(base(), symmetry), Trace_ELBO()),
        "AutoSymmetrized, TraceSymmetrized_ELBO": stepper(
            pp.AutoSymmetrized(base(), symmetry), pp.TraceSymmetrized_ELBO()
        ),
        "AutoNormal, TraceSymmetrized_ELBO": stepper(
            base(), pp.TraceSymmetrized_ELBO(symmetry=symmetry)
        ),
        "with scales, Trace_ELBO": stepper(pp.AutoSymmetrized(base(), scales), Trace_ELBO()),
        "with scales, permute=False, Trace_ELBO": stepper(
            pp.AutoSymmetrized(base(), scales, permute=False), Trace_ELBO()
        ),
        "with scales, TraceSymmetrized_ELBO": stepper(
            pp.AutoSymmetrized(base(), scales), pp.TraceSymmetrized_ELBO()
        ),
        "InfoNCE(32), Trace_ELBO": stepper(
            pp.AutoSymmetrized(base(), symmetry, estimator=pp.InfoNCE(32)), Trace_ELBO()
        ),
        "AutoNormal, FunctionalMeanField_ELBO": functional(pp.FunctionalMeanField_ELBO(), base()),
        "AutoSymmetrized, FunctionalSymmetrized_ELBO": functional(
            pp.FunctionalSymmetrized_ELBO(), pp.AutoSymmetrized(base(), symmetry)
        ),
        "with scales, FunctionalSymmetrized_ELBO": functional(
            pp.FunctionalSymmetrized_ELBO(), pp.AutoSymmetrized(base(), scales)
        ),
    }


def switch_off(guide: AutoNormal, share: float) -> None:
    """Give a share of the units the prior as their variational factor, as training does."""
    with torch.no_grad():
        for site, axis in (("w0", 0), ("b0", 0), ("w1", 1)):
            loc, scale = getattr(guide.locs, site), getattr(guide.scales, f"{site}_unconstrained")
            off = slice(int(share * loc.shape[axis]))
            loc.movedim(axis, 0)[off] = 0.0
            scale.movedim(axis, 0)[off] = torch.tensor(1.0).expm1().log()  # softplus gives 1


def paired_times(
    shape: tuple[int, int, int],
    off: float,
    rounds: int,
    num_steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each step, method by method; every round starts anew and warms up."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        steps = steppers(shape, off, clock)
        for repeat in range(-3, num_steps):
            for name, step in steps.items():
                seconds = step()
                if repeat >= 0:
                    times.setdefault(name, []).append(seconds)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=4, help="each from a new start")
    parser.add_argument("--shape", type=int, nargs=3, action="append", help="inputs units outputs")
    parser.add_argument("--off", type=float, nargs="*", default=[0.0, 0.5])
    parser.add_argument("--cpu-time", action="store_true", help="for machines that are busy")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    pyro.settings.set(module_local_params=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    for shape in options.shape or SHAPES:
        for off in options.off:
            times = paired_times(tuple(shape), off, options.rounds, options.steps, clock)
            plain = times["AutoNormal, Trace_ELBO"]
            print(f"\n{'-'.join(map(str, shape))}, {off:.0%} of the units switched off")
            for name, seconds in times.items():
                ratio = statistics.median(s / p for s, p in zip(seconds, plain, strict=True))
                print(f"  {name:42s} {1e3 * statistics.median(seconds):8.2f} ms   x {ratio:.2f}")


if __name__ == "__main__":
    main()
