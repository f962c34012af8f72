"""Steps a second of plain and symmetrized guides on the device at hand.

For each network: steps a second of an AutoNormal, of AutoSymmetrized with permutations, and with
scales where the benchmark has them, all by losses without traces and torch's Adam; the milliseconds
that a step takes more than the AutoNormal's, which is the correction; peak memory; and how often a
step waits for the device. The device is an accelerator if torch has one, else the CPU, which has
no memory of its own and nothing to wait for. Run

    python benchmarks/device.py

which takes about a minute on an H200; on a CPU, ``--quick`` takes small networks and few steps.
``--results`` keeps one file a row, of which ``python docs/write_results.py`` makes a table.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from architectures import Classifier, ResNet20, Transformer
from networks import network, spec, spec_with_scales
from pyro.infer.autoguide import AutoNormal
from results_store import Run, Store
from torch import Tensor, nn

import pyro_perm as pp

BENCHMARK = "device"
BATCH, IMAGE, WARM_UP = 128, 8, 3
TORCH = Path(torch.__file__).parent
Data = tuple[Tensor, Tensor]
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A model and its groups.

    Attributes:
        model: the model.
        args: a batch, on the device.
        permutations: its permutations; None finds them.
        scales: permutations that rescale; None where the benchmark has no such row.
    """

    model: Callable
    args: Data
    permutations: pp.PermutationSymmetry | None = None
    scales: pp.PermutationSymmetry | None = None


@dataclass(frozen=True)
class Measured:
    """What a guide's step costs.

    Attributes:
        seconds: of a step.
        megabytes: peak memory on the device; None on a CPU.
        waits: the lines at which a step waits for the device; None where torch cannot tell.
    """

    seconds: float
    megabytes: float | None
    waits: Counter[str] | None


def layers(inputs: int, units: int, outputs: int) -> Case:
    """A network of one hidden layer."""
    x, y = torch.randn(BATCH, inputs), torch.randint(outputs, (BATCH,))
    model = network(inputs, [units], outputs, classify=True)
    return Case(model, (x, y), *map(pp.PermutationSymmetry, (spec(1), spec_with_scales(1))))


def image_classifier(net: Callable[[], nn.Module]) -> Case:
    """A network on images."""
    args = torch.rand(BATCH, IMAGE, IMAGE), torch.randint(10, (BATCH,))
    return Case(Classifier(net()), args)


CASES: dict[str, Callable[[], Case]] = {
    "784-400-10": partial(layers, 784, 400, 10),
    "784-4000-10": partial(layers, 784, 4000, 10),
    "ResNet-20": partial(image_classifier, partial(ResNet20, partial(nn.GroupNorm, 4))),
    "4 transformer layers": partial(image_classifier, partial(Transformer, 4)),
}
QUICK: dict[str, Callable[[], Case]] = {
    "64-20-10": partial(layers, 64, 20, 10),
    "transformer layer": partial(image_classifier, partial(Transformer, 1, 16)),
}


def stepper(case: Case, guide: AutoNormal, loss: pp.FunctionalMeanField_ELBO) -> Step:
    """A function that takes one step."""
    module = loss(case.model, guide)
    module(*case.args)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        module(*case.args).backward()
        optimizer.step()

    return step


def methods(case: Case) -> dict[str, Callable[[], Step]]:
    """What is measured."""

    def base() -> AutoNormal:
        pyro.set_rng_seed(0)
        return AutoNormal(case.model, init_loc_fn=pp.init_to_fan_in, init_scale=0.05)

    def symmetrized(symmetry: pp.PermutationSymmetry | None) -> Step:
        guide = pp.AutoSymmetrized(base(), symmetry)
        return stepper(case, guide, pp.FunctionalSymmetrized_ELBO())

    found = {
        "AutoNormal": lambda: stepper(case, base(), pp.FunctionalMeanField_ELBO()),
        "permutations": lambda: symmetrized(case.permutations),
    }
    if case.scales is not None:
        found["permutations and scales"] = lambda: symmetrized(case.scales)
    return found


def measure(step: Step, device: torch.device, num_steps: int) -> Measured:
    """Time steps, after some to warm up, and look at one of them."""
    for _ in range(WARM_UP):
        step()
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    wait_for(device)
    seconds = (time.perf_counter() - start) / num_steps
    megabytes = torch.cuda.max_memory_allocated() / 2**20 if on_cuda else None
    return Measured(seconds, megabytes, waits_of(step) if on_cuda else None)


def wait_for(device: torch.device) -> None:
    """Until all that was asked for is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def waits_of(step: Step) -> Counter[str]:
    """Where a step waits for a CUDA device, by torch's own warnings, and how often."""
    lines: Counter[str] = Counter()

    def count(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            lines[_line_outside_of_torch()] += 1

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = count
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return lines


def _line_outside_of_torch() -> str:
    frames = traceback.extract_stack()[:-2]
    inner = (f for f in reversed(frames) if TORCH not in Path(f.filename).parents)
    line = next(f for f in inner if f.filename != warnings.__file__)
    return f"{'/'.join(Path(line.filename).parts[-2:])}:{line.lineno}"


def scores(found: Measured, plain: Measured) -> dict[str, Any]:
    """What a file holds."""
    return {
        "steps_per_second": 1 / found.seconds,
        "milliseconds_more": 1e3 * (found.seconds - plain.seconds),
        "megabytes": found.megabytes,
        "waits": None if found.waits is None else found.waits.total(),
    }


def row(name: str, found: Measured, plain: Measured) -> str:
    """One method's line."""
    megabytes = "-" if found.megabytes is None else f"{found.megabytes:.0f}"
    waits = "-" if found.waits is None else str(found.waits.total())
    correction = 1e3 * (found.seconds - plain.seconds)
    return f"  {name:26s}{1 / found.seconds:10.1f}{correction:12.2f}{megabytes:>10s}{waits:>8s}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small networks, few steps")
    parser.add_argument("--steps", type=int, help="by default 50, or 5 with --quick")
    parser.add_argument("--results", type=Path, help="a folder for files of the rows")
    parser.add_argument(
        "--no-validation", action="store_true", help="distributions check no arguments"
    )
    parser.add_argument("--where", action="store_true", help="tell at which lines steps wait")
    options = parser.parse_args(arguments)
    num_steps = options.steps or (5 if options.quick else 50)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = found or torch.device("cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    pyro.settings.set(module_local_params=True)
    pyro.enable_validation(not options.no_validation)
    torch.set_default_device(device)
    print(f"{name}, torch {torch.__version__}, batches of {BATCH}, {num_steps} steps each")
    print(f"  {'':26s}{'steps / s':>10s}{'ms more':>12s}{'peak MB':>10s}{'waits':>8s}")
    try:
        for network_name, make in (QUICK if options.quick else CASES).items():
            print(network_name)
            case, plain = make(), None
            for method, make_step in methods(case).items():
                measured = measure(make_step(), device, num_steps)
                plain = plain or measured
                if options.results is not None:
                    checks = "unchecked" if options.no_validation else "checked"
                    run = Run(BENCHMARK, f"{name}: {network_name}", f"{method}, {checks}", 0)
                    settings = {"batch_size": BATCH, "num_steps": num_steps}
                    Store(options.results).save(run, settings, scores(measured, plain))
                print(row(method, measured, plain))
                if options.where and measured.waits:
                    print("   ", ", ".join(f"{n} x {at}" for at, n in measured.waits.most_common()))
                sys.stdout.flush()
    finally:
        torch.set_default_device(None)
        pyro.enable_validation(True)


if __name__ == "__main__":
    main()
