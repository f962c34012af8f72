"""ResNet-20 and a transformer layer: what is found, and what training with it costs.

Every weight has the prior ``N(0, 1 / fan-in)``, norms and biases ``N(0, 1)``; the data are 8x8
digits. For each network it prints the time of :func:`pyro_perm.find_symmetry`, the groups, and 50
steps of ``AutoSymmetrized(AutoNormal(model))`` with the default estimator against 50 of
``AutoNormal(model)``, in CPU time. Run ``OMP_NUM_THREADS=1 python benchmarks/architectures.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from networks import with_priors
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from pyro.optim import Adam
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyro_perm as pp


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, c_in: int, c_out: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        stride = c_out // c_in
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = norm(c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + (self.shortcut(x) if self.shortcut else x))


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels wide (He et al. 2016, Section 4.2)."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, 1, 1, bias=False), norm(16)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(*(Block(c_in, c_out, norm) for c_in, c_out in pairwise(widths)))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(F.relu(self.norm(self.stem(x.unsqueeze(1)))))
        return self.head(h.mean((2, 3)))


class Transformer(nn.Module):
    """Encoder layers over the rows of an image."""

    def __init__(self, num_layers: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        layer = partial(nn.TransformerEncoderLayer, width, 4, 2 * width, 0.0, batch_first=True)
        self.layers = nn.Sequential(*(layer() for _ in range(num_layers)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(x)).mean(1))


class Classifier(PyroModule):
    """A Bayesian network with a categorical likelihood."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = with_priors(net)

    def forward(self, x: Tensor, y: Tensor) -> None:
        logits = self.net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-20, BatchNorm": lambda: ResNet20(partial(nn.BatchNorm2d, track_running_stats=False)),
    "ResNet-20, GroupNorm": lambda: ResNet20(partial(nn.GroupNorm, 4)),
    "transformer layer": lambda: Transformer(1),
    "4 transformer layers": lambda: Transformer(4),
}


def digits(num: int) -> tuple[Tensor, Tensor]:
    """Images, shape ``(num, 8, 8)``, and labels."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:num], dtype=torch.float32).view(-1, 8, 8) / 16
    return x, torch.tensor(labels[:num])


def train(
    model: Classifier, guide: Callable, args: tuple[Tensor, Tensor], num_steps: int
) -> tuple[float, str]:
    """CPU seconds of a step, without the first, which sets up; and a row of the table."""
    svi = SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO())
    losses = [svi.step(*args)]
    start = time.process_time()
    losses += [svi.step(*args) for _ in range(num_steps - 1)]
    seconds = (time.process_time() - start) / (num_steps - 1)
    return seconds, f"{1e3 * seconds:6.0f} ms a step, loss {losses[0]:.0f} to {losses[-1]:.0f}"


def compare(name: str, args: tuple[Tensor, Tensor], num_steps: int) -> None:
    """Print one network's results."""
    model = Classifier(NETWORKS[name]())
    start = time.process_time()
    symmetry = pp.find_symmetry(model, *args)
    seconds = time.process_time() - start
    sizes = ", ".join(f"{size}!" for size in symmetry.groups.values())
    print(f"\n{name}: found in {seconds:.2f} s\n  log |G| = {symmetry.log_order:.0f}: {sizes}")
    times = []
    for symmetrized in (False, True):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.01)
        guide = pp.AutoSymmetrized(guide) if symmetrized else guide
        seconds, row = train(model, guide, args, num_steps)
        times.append(seconds)
        print(f"  {'AutoSymmetrized' if symmetrized else 'AutoNormal':15s}  {row}")
    print(f"  x {times[1] / times[0]:.2f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=128)
    options = parser.parse_args()
    pyro.set_rng_seed(0)
    for name in options.network or NETWORKS:
        compare(name, digits(options.images), options.steps)


if __name__ == "__main__":
    main()
