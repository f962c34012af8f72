"""Symmetries of plain networks: every classifier of torchvision, and four networks of torch parts.

For each network with random weights: its groups, log |G|, CPU seconds of the discovery on one
thread, and the largest change of an output under a random element of the whole group, in double
precision and relative to the largest output; it ends with an error if one is above 1e-10. Axes that
stay fixed for another reason than that they are inputs, outputs, places of kernels or numbers of
tokens are named.

    pip install --no-deps torchvision==0.28.0      # the one of torch 2.13
    OMP_NUM_THREADS=1 python benchmarks/modules.py [resnet18 gpt ...]

Networks run in processes of their own, the smallest first. torchvision's compiled operators, which
no classifier calls, are declared where its wheel is compiled for another build of torch.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from typing import Any

import torch
from networks_of_torch_parts import NETWORKS
from torch import Tensor, nn

import pyro_perm as pp

EXPECTED = re.compile(
    r"returned value|argument \d|places of the kernel|order-dependent aten.convolution"
    r"|indexed by aten.embedding"
)
SIZES = {"vit": 224, "maxvit": 224, "inception": 96}


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


def network_and_input(name: str) -> tuple[nn.Module, Tensor]:
    if name in NETWORKS:
        return NETWORKS[name]()
    models = torchvision_models()
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = next((size for start, size in SIZES.items() if name.startswith(start)), 64)
    return models.get_model(name, weights=None, **options), torch.randn(2, 3, size, size)


def randomize(network: nn.Module) -> None:
    """Norms start with the same values for all channels, which hides what is not moved."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))


@torch.no_grad()
def largest_change(network: nn.Module, x: Tensor, symmetry: pp.PermutationSymmetry) -> float:
    network = network.double()
    x = x.double() if x.is_floating_point() else x
    before = network(x)
    network.load_state_dict(symmetry.apply(symmetry.sample(), network.state_dict()))
    return float((network(x) - before).abs().max() / before.abs().max())


def row(name: str) -> str:
    torch.manual_seed(0)
    network, x = network_and_input(name)
    network.eval()
    randomize(network)
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        symmetry = pp.find_symmetry(network, x)
    seconds = time.process_time() - start
    change = largest_change(network, x, symmetry) if symmetry else 0.0
    if change > 1e-10:
        raise SystemExit(f"{name}: outputs change by {change:.1e}")
    reasons = Counter(r for r in symmetry.reasons.values() if not EXPECTED.search(r))
    missed = [f"{reason} ({count} axes)" for reason, count in reasons.most_common(3)]
    missed += [f"warning: {warning.message}" for warning in caught]
    num = sum(parameter.numel() for parameter in network.parameters())
    units = sum(symmetry.groups.values()) if symmetry else 0
    return (
        f"| {name} | {num / 1e6:.2f} | {len(symmetry.spec)} | {units} | "
        f"{symmetry.log_order:.0f} | {seconds:.1f} | {change:.0e} | {'; '.join(missed) or '-'} |"
    )


def names_by_size() -> list[str]:
    models = torchvision_models()
    sizes = {}
    for name in models.list_models(module=models):
        with torch.device("meta"):
            options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            network = models.get_model(name, weights=None, **options)
        sizes[name] = sum(parameter.numel() for parameter in network.parameters())
    return [*NETWORKS, *sorted(sizes, key=lambda name: sizes[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--alone", action="store_true", help="in this process, without a header")
    options = parser.parse_args()
    if options.alone:
        print(row(options.names[0]), flush=True)
        return
    print(
        "| network | 10^6 parameters | groups | units | log G | seconds | change | not found |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    failed = []
    for name in options.names or names_by_size():
        command = [sys.executable, __file__, "--alone", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            failed.append(name)
            print(f"| {name} | failed: {done.stderr.strip().splitlines()[-1]} |", flush=True)
        else:
            print(done.stdout.strip(), flush=True)
    if failed:
        raise SystemExit(f"failed: {failed}")


if __name__ == "__main__":
    main()
