"""Where symmetrization helps: gain, active units and held-out score, against width and data size.

Noisy values of ``sin(4 x)`` on ``[-1, 1]``, one hidden layer of tanh units, a prior scaled by the
width, and known noise. ``AutoNormal`` and ``AutoSymmetrized`` start from the same draw of the prior
and take the same steps; the learning rate falls to a fiftieth. Printed for each width and number of
points, averaged over the seeds: ``ELBO(q)``, the certified lower bound of ``ELBO(q^G)``,
``I(g; w)``, ``log n!``, active units (outgoing mean above its standard deviation), the held-out
log-likelihood a point with its standard error over the seeds, and the width that each score picks.
Run ``python benchmarks/width_and_data.py``.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import astuple, dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.optim import ClippedAdam
from torch import Tensor

import pyro_perm as pp

NOISE, HELD_OUT, DRAWS = 0.3, 1000, 1000
GUIDES = ("AutoNormal", "AutoSymmetrized")


@dataclass(frozen=True)
class Result:
    """What one training run ends with."""

    mean_field: float
    symmetrized: float
    information: float
    active: float
    held_out: float


def toy(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs, shape ``(num, 1)``, and targets, shape ``(num,)``."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(num, 1, generator=generator) - 1
    return x, torch.sin(4 * x[:, 0]) + NOISE * torch.randn(num, generator=generator)


def function(w1: Tensor, b1: Tensor, w2: Tensor, x: Tensor) -> Tensor:
    """The network's values, for weights that may carry a batch."""
    return (torch.tanh(x @ w1.mT + b1.unsqueeze(-2)) @ w2.mT).squeeze(-1)


def network(width: int) -> Callable:
    """The model ``(x, y)``."""

    def model(x: Tensor, y: Tensor) -> None:
        w1 = pyro.sample("w1", dist.Normal(0.0, 2.0).expand([width, 1]).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(0.0, 2.0).expand([width]).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(0.0, width**-0.5).expand([1, width]).to_event(2))
        pyro.sample("y", dist.Normal(function(w1, b1, w2, x), NOISE).to_event(1), obs=y)

    return model


def run(width: int, num: int, name: str, seed: int, options: argparse.Namespace) -> Result:
    """Train from the seed's data and start, then evaluate."""
    x, y = toy(num, seed)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = network(width)
    base = AutoNormal(model, init_loc_fn=init_to_sample)
    guide = base if name == "AutoNormal" else pp.AutoSymmetrized(base, permute=False)
    decay = 0.02 ** (1 / options.steps)
    adam = ClippedAdam({"lr": options.learning_rate, "lrd": decay, "betas": (0.9, 0.99)})
    loss = Trace_ELBO(options.particles, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, adam, loss)
    for _ in range(options.steps):
        svi.step(x, y)
    elbo = pp.symmetrized_elbo(
        model, base, x, y, num_samples=200, symmetry=pp.find_symmetry(model, x, y), progress=False
    )
    low, middle, high = base.quantiles([0.1587, 0.5, 0.8413])["w2"]
    active = (middle.abs() > (high - low) / 2).sum().item()
    return Result(elbo.base, elbo.lower, elbo.mutual_information.lower, active, held_out(base))


@torch.no_grad()
def held_out(base: AutoNormal) -> float:
    """Mean log predictive density of new points, in nats."""
    x, y = toy(HELD_OUT, seed=12345)
    draws = {
        site: dist.Normal(getattr(base.locs, site), getattr(base.scales, site)).sample((DRAWS,))
        for site in ("w1", "b1", "w2")
    }
    log_prob = dist.Normal(function(**draws, x=x), NOISE).log_prob(y)
    return (log_prob.logsumexp(0) - math.log(DRAWS)).mean().item()


def main() -> None:
    """Print a table for each number of points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 6, 18])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    options = parser.parse_args()
    for num in options.sizes:
        report(num, options)


def report(num: int, options: argparse.Namespace) -> None:
    """One table, and the widths picked."""
    print(
        f"\n{num} points\n  width  guide              ELBO(q)  ELBO(q^G)  I(g; w)   log n!", end=""
    )
    print("  active  held-out log-likelihood", flush=True)
    means: dict[tuple[str, int], Result] = {}
    for width in options.widths:
        for name in GUIDES:
            runs = [run(width, num, name, seed, options) for seed in range(options.seeds)]
            mean = Result(
                *(statistics.mean(column) for column in zip(*map(astuple, runs), strict=True))
            )
            means[name, width] = mean
            scores = [each.held_out for each in runs]
            error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
            print(
                f"  {width:5d}  {name:15s} {mean.mean_field:10.1f} {mean.symmetrized:10.1f}"
                f" {mean.information:8.1f} {math.lgamma(width + 1):8.1f} {mean.active:7.1f}"
                f" {mean.held_out:10.3f} +- {error:.3f}",
                flush=True,
            )
    for title, name, score in (
        ("ELBO(q) of AutoNormal", "AutoNormal", "mean_field"),
        ("ELBO(q^G) of AutoNormal", "AutoNormal", "symmetrized"),
        ("ELBO(q^G) of AutoSymmetrized", "AutoSymmetrized", "symmetrized"),
        ("held-out score of AutoNormal", "AutoNormal", "held_out"),
        ("held-out score of AutoSymmetrized", "AutoSymmetrized", "held_out"),
    ):
        best = max(options.widths, key=lambda width: getattr(means[name, width], score))
        print(f"  width picked by {title}: {best}")


if __name__ == "__main__":
    main()
