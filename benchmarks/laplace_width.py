"""Which width Laplace's evidence picks, with the certified gain of symmetry and without.

A regression from a network with a few hidden units, and networks of several widths. The evidence of
each is estimated by Laplace's method at the best mode of several starts, with the exact Hessian; by
the same with I(g; w) of its Gaussian; and by annealed importance sampling, the judge. One file a
width; a width that has one is not run again.

    OMP_NUM_THREADS=1 python benchmarks/laplace_width.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from results_store import RESULTS, Run, Store
from torch import Tensor, nn
from torch.func import functional_call

import pyro_perm as pp

BENCHMARK = "laplace-width"
NOISE, SCALE = 0.1, 1.5


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, 1))


def data(num: int) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-2, 2, num).unsqueeze(-1)
    return x, torch.sin(2.5 * x) + NOISE * torch.randn(num, 1)


def mode(net: nn.Module, x: Tensor, y: Tensor, num_starts: int) -> tuple[Tensor, Tensor, float]:
    """The best mode of the log joint, the Hessian of its negative there, and its value."""
    shapes = {name: p.shape for name, p in net.named_parameters()}

    def log_joint(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        values = {n: v.view(s) for (n, s), v in zip(shapes.items(), parts, strict=True)}
        fit = dist.Normal(functional_call(net, values, x), NOISE).log_prob(y).sum()
        return fit + dist.Normal(0.0, SCALE).log_prob(vector).sum()

    size, found = sum(shape.numel() for shape in shapes.values()), []
    for _ in range(num_starts):
        vector = torch.randn(size).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [vector], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
        )

        def closure(vector: Tensor = vector, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = -log_joint(vector)
            loss.backward()
            return loss

        optimizer.step(closure)
        found.append((log_joint(vector).item(), vector.detach()))
    value, vector = max(found, key=lambda each: each[0])
    return vector, -torch.func.hessian(log_joint)(vector), value


def scores(width: int, options: argparse.Namespace) -> dict[str, float]:
    """The evidence of a width by each method, in nats."""
    pyro.set_rng_seed(0)
    x, y = data(options.num_data)
    net = network(width)
    vector, precision, value = mode(net, x, y, options.num_starts)
    laplace = value + 0.5 * (len(vector) * math.log(2 * math.pi) - precision.logdet().item())
    nn.utils.vector_to_parameters(vector, net.parameters())
    means = {name: p.detach().clone() for name, p in net.named_parameters()}
    model, guide = pp.gaussian_posterior(
        net,
        pp.DenseGaussian.of_precision(means, precision),
        prior=dist.Normal(0.0, SCALE),
        likelihood=pp.likelihoods.gaussian(NOISE),
    )
    lower = upper = laplace  # A single unit has no copies.
    if width > 1:
        evidence = pp.log_evidence_laplace(
            guide, x, y, log_marginal_likelihood=laplace, num_samples=200, progress=False
        )
        lower, upper = evidence.lower, evidence.upper
    annealed = pp.log_evidence(
        model,
        x,
        y,
        num_particles=options.num_particles,
        num_temperatures=options.num_temperatures,
        progress=False,
    )
    return {
        "laplace": laplace,
        "lower": lower,
        "upper": upper,
        "log_order": math.lgamma(width + 1),
        "annealed": annealed.log_evidence,
        "annealed_error": annealed.standard_error,
    }


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--num-data", type=int, default=15)
    parser.add_argument("--num-starts", type=int, default=40)
    parser.add_argument("--num-particles", type=int, default=200)
    parser.add_argument("--num-temperatures", type=int, default=1000)
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    pyro.settings.set(module_local_params=True)
    store = Store(options.results)
    chosen = ("num_starts", "num_particles", "num_temperatures")
    settings = {name: getattr(options, name) for name in chosen}
    for width in options.widths:
        run = Run(BENCHMARK, f"{options.num_data} points", f"{width} units", 0)
        if not store.has(run, settings):
            found = scores(width, options)
            store.save(run, settings, found)
            print(width, found, flush=True)


if __name__ == "__main__":
    main()
