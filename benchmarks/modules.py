"""Symmetries of plain networks: every classifier of torchvision, and four networks of torch parts.

For each network with random weights: its groups, log |G|, CPU seconds of the discovery on one
thread, and the largest change of an output under a random element of the whole group, in double
precision and relative to the largest output; it ends with an error if one is above 1e-10. Axes that
stay fixed for another reason than that they are inputs, outputs, places of kernels or numbers of
tokens are named.

    pip install --no-deps torchvision==0.28.0      # the one of torch 2.13
    OMP_NUM_THREADS=1 python benchmarks/modules.py [resnet18 gpt ...]
    OMP_NUM_THREADS=1 python benchmarks/modules.py --workers 16 --total-gibibytes 110 \\
        --gibibytes 40 --total-seconds 480 --results elsewhere

Networks run in processes of their own, each with a limit on its time and its memory. What is found
is one file a network below ``benchmarks/results``, whole or not at all; a network that has one is
not run again, unless it went beyond a limit, and one that the time for all of them cuts off is left
for the next run. One worker takes the smallest first; of several, each takes the largest for which
there is memory, so that none is left with a long one at the end. Images are small where the network
allows it, and ``--full-size`` runs networks on the images of 224 pixels that they were made for, to
compare. torchvision's compiled operators, which no classifier calls, are declared where its wheel
is compiled for another build of torch.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from networks_of_torch_parts import NETWORKS
from results_store import RESULTS, Run, Store
from torch import Tensor, nn
from torch.func import functional_call

import pyro_perm as pp

BENCHMARK = "modules"
TOLERANCE = 1e-10
BYTES_A_PARAMETER = 48  # In single and double precision, with copies; 37 to 50 were observed.
FULL_SIZE = 224
EXPECTED = re.compile(
    r"returned value|argument \d|places of the kernel|order-dependent aten.convolution"
    r"|indexed by aten.embedding"
)
# MaxViT's windows of seven divide no smaller image, and Inception's poolings leave nothing of it.
SMALLEST_SIZES = {"maxvit": FULL_SIZE, "inception": 96, "vit_h_14": 56}


@dataclass(frozen=True)
class Limits:
    """Of a network's process.

    Attributes:
        seconds: of a processor.
        gibibytes: of memory.
    """

    seconds: int
    gibibytes: float


@dataclass(frozen=True)
class Resources:
    """Of all networks together.

    Attributes:
        workers: processes side by side.
        gibibytes: of memory.
        seconds: of a clock on the wall, after which no network is waited for.
    """

    workers: int = 1
    gibibytes: float = math.inf
    seconds: float = math.inf


def torchvision_models() -> Any:
    try:
        import torchvision.models as models
    except RuntimeError:
        for module in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision.models as models

        models.library = library  # It is withdrawn with the object.
    return models


def image_size(name: str, full_size: bool) -> int | None:
    """Pixels a side, or None for networks that bring their own input."""
    if name in NETWORKS:
        return None
    smallest = (size for start, size in SMALLEST_SIZES.items() if name.startswith(start))
    return FULL_SIZE if full_size else next(smallest, 64)


def network_and_input(name: str, size: int | None) -> tuple[nn.Module, Tensor]:
    if size is None:
        return NETWORKS[name]()
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if name.startswith("vit_"):
        options["image_size"] = size
    network = torchvision_models().get_model(name, weights=None, **options)
    return network, torch.randn(2, 3, size, size)


def randomize(network: nn.Module) -> None:
    """Norms and scales of layers start with the same value for all channels, and heads of vision
    transformers at zero, which hides what is not moved.
    """
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point() and (tensor.dim() == 1 or is_constant(tensor)):
                tensor.add_(0.1 * torch.randn_like(tensor))


def is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


@torch.no_grad()
def largest_change(network: nn.Module, x: Tensor, symmetry: pp.PermutationSymmetry) -> float:
    network = network.double()
    x = x.double() if x.is_floating_point() else x
    before = network(x)
    moved = symmetry.apply(symmetry.sample(), network.state_dict())
    after = functional_call(network, moved, x, tie_weights=False)
    return float((after - before).abs().max() / before.abs().max())


def scores(name: str, size: int | None, device: str = "cpu") -> dict[str, Any]:
    """What is found in a network.

    :raises ValueError: if an element of the group changes the outputs.
    """
    torch.manual_seed(0)
    network, x = network_and_input(name, size)
    network, x = network.to(device).eval(), x.to(device)
    randomize(network)
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        symmetry = pp.find_symmetry(network, x)
    seconds = time.process_time() - start
    change = largest_change(network, x, symmetry) if symmetry else 0.0
    if change > TOLERANCE:
        raise ValueError(f"outputs change by {change:.1e}")
    reasons = Counter(r for r in symmetry.reasons.values() if not EXPECTED.search(r))
    missed = [f"{reason} ({count} axes)" for reason, count in reasons.most_common(3)]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "groups": {str(size): n for size, n in sorted(Counter(symmetry.groups.values()).items())},
        "log_order": symmetry.log_order if symmetry else 0.0,
        "seconds": seconds,
        "change": change,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "not found": missed + [f"warning: {warning.message}" for warning in caught],
    }


def all_names() -> list[str]:
    models = torchvision_models()
    return [*NETWORKS, *models.list_models(module=models)]


def num_parameters(name: str) -> int:
    """Of a network, which is not built for it; those of torch parts count as none."""
    if name in NETWORKS:
        return 0
    number: int = torchvision_models().get_model_weights(name).DEFAULT.meta["num_params"]
    return number


def the_run(name: str, size: int | None) -> Run:
    return Run(BENCHMARK, name, "own input" if size is None else f"{size} pixels", 0)


@dataclass(frozen=True)
class Task:
    """A network to run.

    Attributes:
        name: of the network.
        size: pixels a side of its images, or None.
        gibibytes: of memory that it will take.
        device: on which it runs.
    """

    name: str
    size: int | None
    gibibytes: float
    device: str = "cpu"


def tasks_in_order(
    names: list[str], full_size: bool, resources: Resources, device: str = "cpu"
) -> list[Task]:
    """Networks in the order in which they are to begin."""
    sizes = {name: num_parameters(name) for name in names}
    tasks = [
        Task(
            name,
            image_size(name, full_size),
            0.5 + sizes[name] * BYTES_A_PARAMETER / 2**30,
            device,
        )
        for name in sorted(names, key=sizes.__getitem__)
    ]
    return tasks if resources.workers == 1 else tasks[::-1]


def run_alone(name: str, size: int | None, limits: Limits) -> dict[str, Any]:
    """What is found in a network by a process of its own, or why it found nothing."""
    ((_, found),) = run_side_by_side([Task(name, size, 0.0)], limits, Resources())
    return found


def run_side_by_side(
    tasks: list[Task], limits: Limits, resources: Resources
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Each network with what a process of its own finds in it, as they end."""
    deadline = time.monotonic() + resources.seconds
    waiting, running = list(tasks), dict[Connection, tuple[Task, ForkProcess]]()
    try:
        while waiting or running:
            for task in _next_tasks(waiting, [task for task, _ in running.values()], resources):
                waiting.remove(task)
                receiver, process = _start(task, limits)
                running[receiver] = task, process
            left = None if math.isinf(deadline) else max(deadline - time.monotonic(), 0.0)
            ended = [end for end in wait(running, left) if isinstance(end, Connection)]
            if not ended:
                return
            for receiver in ended:
                task, process = running.pop(receiver)
                yield task, _received(receiver, process, limits)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _next_tasks(waiting: list[Task], running: list[Task], resources: Resources) -> list[Task]:
    """Those for which there are a worker and memory; a network that needs all of it runs alone."""
    chosen: list[Task] = []
    for task in waiting:
        beside = [*running, *chosen]
        memory = sum(other.gibibytes for other in [*beside, task])
        is_room = len(beside) < resources.workers and memory <= resources.gibibytes
        if is_room or not beside:
            chosen.append(task)
    return chosen


def _start(task: Task, limits: Limits) -> tuple[Connection, ForkProcess]:
    processes = multiprocessing.get_context("fork")  # Importing torch takes longer than the rest.
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_send_scores, args=(sender, task, limits))
    process.start()
    sender.close()
    return receiver, process


def _received(receiver: Connection, process: ForkProcess, limits: Limits) -> dict[str, Any]:
    """What a process sent, or how it ended without."""
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        is_late = process.exitcode == -signal.SIGXCPU
        why = f"needs more than {limits.seconds} seconds" if is_late else f"{process.exitcode=}"
        return {"failure": why}
    process.join()
    return found


def _send_scores(sender: Connection, task: Task, limits: Limits) -> None:
    if task.device == "cpu":  # Accelerators map more memory than they use.
        memory = int(limits.gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)  # There the process would be killed.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, most))
    try:
        found = scores(task.name, task.size, task.device)
    except Exception as error:
        is_short = isinstance(error, MemoryError) or "allocate memory" in str(error)
        why = f"needs more than {limits.gibibytes:g} GiB" if is_short else f"{error}"
        found = {"failure": why.splitlines()[0]}
    sender.send(found)


def is_done(store: Store, run: Run) -> bool:
    return store.has(run, {}) and "failure" not in store.read(run)["scores"]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--full-size", action="store_true", help="images of 224 pixels")
    parser.add_argument("--seconds", type=int, default=3600, help="limit of a network")
    parser.add_argument("--gibibytes", type=float, default=14.0, help="limit of a network")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--device", default="cpu", help="where networks run: cuda, say")
    parser.add_argument("--total-gibibytes", type=float, default=math.inf, help="for all workers")
    parser.add_argument("--total-seconds", type=float, default=math.inf, help="for all networks")
    options = parser.parse_args(arguments)
    store, limits = Store(options.results), Limits(options.seconds, options.gibibytes)
    resources = Resources(options.workers, options.total_gibibytes, options.total_seconds)
    names = options.names or all_names()
    tasks = [
        task
        for task in tasks_in_order(names, options.full_size, resources, options.device)
        if not is_done(store, the_run(task.name, task.size))
    ]
    failed = []
    for task, found in run_side_by_side(tasks, limits, resources):
        store.save(the_run(task.name, task.size), {}, found)
        failed += [task.name] * ("failure" in found)
        tasks.remove(task)
        print(task.name, found, flush=True)
    if tasks:
        print("not finished:", *(task.name for task in tasks))
    if failed:
        raise SystemExit(f"failed: {failed}")


if __name__ == "__main__":
    main()
