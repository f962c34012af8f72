"""Which width Laplace's evidence picks, with the certified gain of symmetry and without.

A regression from a network with a few hidden units, and networks of several widths. The evidence of
each is estimated by Laplace's method at the best mode of several starts, with the exact Hessian; by
the same with I(g; w) of its Gaussian; and by annealed importance sampling, the judge.

    python benchmarks/laplace_width.py
"""

from __future__ import annotations

import argparse
import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call

import pyro_perm as pp

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--num-data", type=int, default=15)
    parser.add_argument("--num-starts", type=int, default=40)
    parser.add_argument("--num-particles", type=int, default=200)
    parser.add_argument("--num-temperatures", type=int, default=1000)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    pyro.settings.set(module_local_params=True)
    pyro.set_rng_seed(0)
    x, y = data(options.num_data)
    print("| width | Laplace | with I | log n! | annealed importance sampling |")
    print("|---|---|---|---|---|")
    for width in options.widths:
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
        gain = "0"
        if width > 1:
            evidence = pp.log_evidence_laplace(
                guide, x, y, log_marginal_likelihood=laplace, num_samples=200, progress=False
            )
            gain = f"[{evidence.lower:.1f}, {evidence.upper:.1f}]"
        else:
            gain = f"{laplace:.1f}"
        annealed = pp.log_evidence(
            model,
            x,
            y,
            num_particles=options.num_particles,
            num_temperatures=options.num_temperatures,
            progress=False,
        )
        print(
            f"| {width} | {laplace:.1f} | {gain} | {math.lgamma(width + 1):.1f} "
            f"| {annealed.log_evidence:.1f} +- {annealed.standard_error:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
