"""Steps a second, as Python takes them and under ``torch.compile``, on the device at hand.

Steps are those of losses without traces and PyTorch's Adam, all ways in turn, so that noise of the
machine hits them alike; printed are medians, and the medians of the ratios to the first row. On a
CPU noise is PyTorch's own (``fallback_random``), and in a row of its own the compiler's, which is
slow there. On CUDA also with ``mode="reduce-overhead"``, which records CUDA graphs of what lies
around the estimator. Half of the units are off, as training leaves them. Run

    python benchmarks/compiled.py

which takes some minutes, most of them in the compiler; ``--quick`` takes one network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from device import wait_for
from networks import network, spec
from pyro.infer.autoguide import AutoNormal
from step_cost import BATCH, base_guide, data
from torch import Tensor, nn

import pyro_perm as pp

SHAPES = [(10, 50, 1), (64, 100, 10), (784, 400, 10), (784, 4000, 10)]
QUICK = [(784, 400, 10)]
ROUNDS = 5
ESTIMATORS = {"Bethe": pp.Bethe(), "InfoNCE(32)": pp.InfoNCE(32)}
Step = Callable[[], None]


def losses(shape: tuple[int, int, int], off: float) -> dict[str, nn.Module]:
    """Losses that have been called once."""
    inputs, units, outputs = shape
    model = network(inputs, [units], outputs, classify=outputs > 1)
    args = data(inputs, outputs)

    def base() -> AutoNormal:
        return base_guide(model, args, off)

    modules = {"AutoNormal": pp.FunctionalMeanField_ELBO()(model, base())}
    for name, estimator in ESTIMATORS.items():
        symmetry = pp.PermutationSymmetry(spec(1))
        guide = pp.AutoSymmetrized(base(), symmetry, estimator=estimator)
        modules[f"AutoSymmetrized, {name}"] = pp.FunctionalSymmetrized_ELBO()(model, guide)
    for module in modules.values():
        module(*args)
    return modules


def stepper(module: nn.Module, called: Callable[..., Tensor], args: tuple[Tensor, ...]) -> Step:
    """A function that takes a step."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        called(*args).backward()
        optimizer.step()

    return step


def seconds_in_turn(
    steps: dict[str, Step], num_steps: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of a step of each way, round by round."""
    for step in steps.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            step()
            wait_for(device)
            start = clock()
            for _ in range(num_steps):
                step()
            wait_for(device)
            seconds[name].append((clock() - start) / num_steps)
    return seconds


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, action="append", help="inputs units outputs")
    parser.add_argument("--quick", action="store_true", help="one network")
    parser.add_argument("--steps", type=int, default=20, help="steps in a round")
    parser.add_argument("--off", type=float, default=0.5, help="share of the units that are off")
    parser.add_argument("--cpu-time", action="store_true", help="for machines that are busy")
    options = parser.parse_args()
    pyro.settings.set(module_local_params=True)
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    torch.set_default_device(device)
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, batch {BATCH}")
    for shape in options.shape or (QUICK if options.quick else SHAPES):
        torch.manual_seed(0)
        args = data(shape[0], shape[2])
        print(f"\n{'-'.join(map(str, shape))}, {options.off:.0%} of the units switched off")
        for name, module in losses(tuple(shape), options.off).items():
            ways = {"eager": module, "compiled": torch.compile(module, fullgraph=True)}
            if device.type == "cpu":
                ways["its own noise"] = ways["compiled"]
                ways["compiled"] = torch.compile(
                    module, fullgraph=True, options={"fallback_random": True}
                )
            if device.type == "cuda":
                ways["reduce-overhead"] = torch.compile(
                    module, mode="reduce-overhead", fullgraph=True
                )
            steps = {way: stepper(module, called, args) for way, called in ways.items()}
            start = time.perf_counter()
            seconds = seconds_in_turn(steps, options.steps, device, clock)
            for way, each in seconds.items():
                median = statistics.median(each)
                paired = zip(each, seconds["eager"], strict=True)
                ratio = statistics.median(one / other for one, other in paired)
                print(
                    f"  {name:28s} {way:16s} {1e3 * median:8.2f} ms  {1 / median:7.0f} a second"
                    f"   x {ratio:.2f}"
                )
            print(f"    compiled and measured in {time.perf_counter() - start:.0f} s", flush=True)
            torch.compiler.reset()


if __name__ == "__main__":
    main()
