"""How long certificates take: ``symmetrized_elbo`` with default arguments, against training.

Three networks: a U-Net that removes noise from images of 8x8 pixels, with many small coupled groups
of channels; a chain of eight tanh layers of six units; and two hidden layers of 64 units. Printed
are CPU seconds of training and of the certificate, and the certificate: what it found, by which
methods, and what it did not try. Run ``OMP_NUM_THREADS=1 python benchmarks/certificate_times.py``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from networks import network, with_priors
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from pyro.optim import Adam
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

import pyro_perm as pp

Case = tuple[Callable, tuple[Tensor, ...], int]


class Block(nn.Module):
    """Two convolutions around a shortcut, told the time in between."""

    def __init__(self, c_in: int, c_out: int, c_time: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c_in, c_out, 3, 1, 1), nn.Conv2d(c_out, c_out, 3, 1, 1)
        self.time, self.shortcut = nn.Linear(c_time, c_out), nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = F.silu(self.conv1(x)) + self.time(t)[..., None, None]
        return self.conv2(F.silu(h)) + self.shortcut(x)


class UNet(nn.Module):
    """One level down and up again, its channels joined with those from before."""

    def __init__(self, channels: int = 5, c_time: int = 6) -> None:
        super().__init__()
        self.time1, self.time2 = nn.Linear(1, c_time), nn.Linear(c_time, c_time)
        self.stem, self.out = nn.Conv2d(1, channels, 3, 1, 1), nn.Conv2d(channels, 1, 3, 1, 1)
        self.down1, self.down2 = (Block(channels, channels, c_time) for _ in range(2))
        self.middle = Block(channels, channels, c_time)
        self.up1, self.up2 = (Block(2 * channels, channels, c_time) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.time2(F.silu(self.time1(t[:, None])))
        first = self.down1(self.stem(x), t)
        second = self.down2(F.avg_pool2d(first, 2), t)
        middle = self.middle(F.avg_pool2d(second, 2), t)
        up = self.up1(torch.cat([F.interpolate(middle, scale_factor=2), second], 1), t)
        up = self.up2(torch.cat([F.interpolate(up, scale_factor=2), first], 1), t)
        return self.out(F.silu(up))


class Denoiser(PyroModule):
    """Every weight with the prior ``N(0, 1 / fan-in)``, and the noise as target."""

    def __init__(self) -> None:
        super().__init__()
        self.net = with_priors(UNet())

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> None:
        mean = self.net(x, t)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5).to_event(3), obs=y)


def unet() -> Case:
    images = torch.tensor(load_digits().images[:64], dtype=torch.float32)[:, None] / 16
    time, noise = torch.rand(len(images)), torch.randn(images.shape)
    share = time[:, None, None, None]
    return Denoiser(), ((1 - share) * images + share * noise, time, noise), 300


def chain() -> Case:
    x = torch.linspace(-2, 2, 60)[:, None]

    def model(x: Tensor, y: Tensor) -> None:
        h = x
        for depth, (units, inputs) in enumerate([(6, 1), *7 * [(6, 6)], (1, 6)]):
            weight = dist.Normal(0.0, 1.5 / math.sqrt(inputs)).expand([units, inputs]).to_event(2)
            bias = dist.Normal(0.0, 1.0).expand([units]).to_event(1)
            h = torch.tanh(h) if depth else h
            h = h @ pyro.sample(f"w{depth}", weight).T + pyro.sample(f"b{depth}", bias)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(h.squeeze(-1), 0.1), obs=y)

    return model, (x, torch.sin(3 * x).squeeze(-1)), 1000


def two_layers() -> Case:
    x, y = load_diabetes(return_X_y=True)
    x, y = (torch.as_tensor(z, dtype=torch.float32) for z in (x, y))
    x, y = ((z - z.mean(0)) / z.std(0) for z in (x, y))
    return network(x.shape[1], [64, 64], 1, classify=False), (x, y), 3000


CASES = {"U-Net": unet, "eight tanh layers of 6": chain, "two layers of 64": two_layers}


def main() -> None:
    """Print the times and the certificates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append")
    options = parser.parse_args()
    for name in options.case or CASES:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, args, num_steps = CASES[name]()
        guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
        svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
        start = time.process_time()
        for _ in range(num_steps):
            svi.step(*args)
        trained = time.process_time()
        elbo = pp.symmetrized_elbo(model, guide, *args, progress=False)
        certified = time.process_time()
        sizes = ", ".join(map(str, guide.symmetry.groups.values()))
        print(f"\n{name}: groups of {sizes} units; {num_steps} steps in {trained - start:.0f} s")
        print(f"certificate in {certified - trained:.0f} s, of {elbo}", flush=True)


if __name__ == "__main__":
    main()
