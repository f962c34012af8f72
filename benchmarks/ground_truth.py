"""AutoNormal and AutoSymmetrized against the truth, on nets small enough to be exact in practice.

Three nets of 3 tanh units. Their posterior is that of NUTS (4 chains, one after the other), their
evidence that of annealed importance sampling, +- a standard error. Printed for each net:

- the evidence, ELBO(q) and the certified interval of ELBO(q^G) of both guides; PASS if the interval
  of AutoSymmetrized lies below the evidence, and nearer to it than ELBO(q) of AutoNormal;
- R-hat of the chains before and after alignment, and of the network's function;
- total variation between each guide's predictive distribution and that of NUTS, averaged over the
  inputs, and for classes their agreement, the share of inputs with the same predicted class;
- the distance between the guide's marginals and those of NUTS, all draws aligned to one mode: the
  Wasserstein-1 distance in standard deviations of NUTS, averaged over the weights.

tanh is odd, so the group permutes the units and flips their signs, ``log |G| = log(3! 2^3) = 3.9``.
Run ``python benchmarks/ground_truth.py``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.optim import ClippedAdam
from scipy.stats import wasserstein_distance
from torch import Tensor

import pyro_perm as pp

UNITS = 3
NOISE = 0.3
SYMMETRY = {
    "hidden": {
        "w1": pp.Axis(0, sign=True),
        "b1": pp.Axis(0, sign=True),
        "w2": pp.Axis(1, sign=True),
    }
}
CHAINS = 4
BINS = torch.linspace(-4, 4, 81)
LEARNING_RATE, FINAL_LEARNING_RATE = 0.02, 0.0005
Symmetry = pp.PermutationSymmetry
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Net:
    """A data set and its model; ``num_classes`` is None for Gaussian observations."""

    x: Tensor
    y: Tensor
    num_classes: int | None

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """Tanh units with ``N(0, 2^2)`` incoming weights, and ``N(0, 1)`` elsewhere."""
        outputs = self.num_classes or 1
        w1 = pyro.sample("w1", dist.Normal(0.0, 2.0).expand([UNITS, x.shape[1]]).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([UNITS]).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([outputs, UNITS]).to_event(2))
        b2 = pyro.sample("b2", dist.Normal(0.0, 1.0).expand([outputs]).to_event(1))
        f = torch.tanh(x @ w1.mT + b1) @ w2.mT + b2
        with pyro.plate("data", len(x)):
            if self.num_classes:
                pyro.sample("y", dist.Categorical(logits=f), obs=y)
            else:
                pyro.sample("y", dist.Normal(f.squeeze(-1), NOISE), obs=y)


def nets() -> dict[str, Net]:
    """A wave with a gap, a step, and three classes around a circle."""
    pyro.set_rng_seed(0)
    wave = torch.cat([torch.linspace(-2, -0.7, 20), torch.linspace(0.5, 2, 20)]).unsqueeze(-1)
    step = torch.linspace(-2, 2, 20).unsqueeze(-1)
    angle = 2 * math.pi * torch.rand(60)
    circle = torch.stack([angle.cos(), angle.sin()], -1) + 0.2 * torch.randn(60, 2)
    return {
        "wave": Net(wave, torch.sin(2 * wave[:, 0]) + NOISE * torch.randn(40), None),
        "step": Net(step, step[:, 0].sign() + NOISE * torch.randn(20), None),
        "circle": Net(circle, (3 * angle / (2 * math.pi)).long(), 3),
    }


def train(net: Net, symmetry: Symmetry | None, steps: int) -> AutoGuide:
    """AutoNormal, or AutoSymmetrized where a symmetry is given, trained on all data."""
    pyro.set_rng_seed(1)
    guide = AutoNormal(net.model, init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(guide, symmetry) if symmetry else guide
    decay = (FINAL_LEARNING_RATE / LEARNING_RATE) ** (1 / steps)
    optimizer = ClippedAdam({"lr": LEARNING_RATE, "lrd": decay})
    svi = SVI(net.model, guide, optimizer, Trace_ELBO())
    for _ in range(steps):
        svi.step(net.x, net.y)
    return guide


def run_nuts(net: Net, warmup: int, draws: int) -> Values:
    """Draws of NUTS, shape ``(CHAINS, draws, *site shape)``."""
    chains = []
    for seed in range(CHAINS):
        pyro.set_rng_seed(seed)
        kernel = NUTS(net.model, jit_compile=True, ignore_jit_warnings=True, full_mass=True)
        mcmc = MCMC(kernel, draws, warmup, disable_progbar=True)
        mcmc.run(net.x, net.y)
        chains.append(mcmc.get_samples())
    return {site: torch.stack([chain[site] for chain in chains]) for site in chains[0]}


def flat(chains: Values) -> Values:
    """All chains as one."""
    return {site: value.flatten(0, 1) for site, value in chains.items()}


def predictive(net: Net, prediction: pp.Prediction) -> Tensor:
    """Probabilities of the classes, or of intervals of ``y``, shape ``(N, C)``."""
    if net.num_classes:
        return prediction.mean
    below = dist.Normal(prediction.means.unsqueeze(-1), NOISE).cdf(BINS).mean(0)
    return below.diff()


def total_variation(p: Tensor, q: Tensor) -> float:
    """Averaged over the inputs."""
    return 0.5 * (p - q).abs().sum(-1).mean().item()


def distance_of_marginals(draws: Values, truth: pp.Alignment, symmetry: Symmetry) -> float:
    """Mean Wasserstein-1 distance of the weights' marginals, in standard deviations of NUTS."""
    draws = pp.align(draws, symmetry, truth.reference).samples
    distances = []
    for site, values in truth.samples.items():
        mine, true = (v.flatten(1).T.double().numpy() for v in (draws[site], values))
        distances += [wasserstein_distance(p, q) / q.std() for p, q in zip(mine, true, strict=True)]
    return sum(distances) / len(distances)


def report_chains(net: Net, chains: Values, symmetry: Symmetry) -> pp.Prediction:
    """Print R-hat; return the predictions of NUTS."""
    prediction = pp.predict(net.model, flat(chains), net.x, progress=False)
    function = prediction.means.unflatten(0, (CHAINS, -1))
    found = pp.convergence_diagnostics(chains, symmetry, {"f": function})
    print(
        f"  largest R-hat of NUTS: weights {found.original.largest_rhat:.2f}, aligned "
        f"{found.aligned.largest_rhat:.2f}, function {found.functions.largest_rhat:.2f}"
    )
    return prediction


def compare(net: Net, options: argparse.Namespace) -> None:
    """Train, sample, and print what the docstring says."""
    symmetry = Symmetry(SYMMETRY)
    symmetry.verify(net.model, net.x, net.y)
    evidence = pp.log_evidence(net.model, net.x, net.y, progress=False)
    print(f"  log evidence {evidence.log_evidence:.2f} +- {evidence.standard_error:.2f}")
    chains = run_nuts(net, options.warmup, options.draws)
    truth = report_chains(net, chains, symmetry)
    aligned = pp.align(flat(chains), symmetry)
    elbos = {}
    for name, group in (("AutoNormal", None), ("AutoSymmetrized", symmetry)):
        guide = train(net, group, options.steps)
        elbo = elbos[name] = pp.symmetrized_elbo(
            net.model,
            guide,
            net.x,
            net.y,
            num_samples=options.samples,
            symmetry=None if group else symmetry,
            progress=False,
        )
        print(
            f"  {name:15s} ELBO(q) {elbo.base:.2f} +- {elbo.base_standard_error:.2f}, "
            f"ELBO(q^G) in [{elbo.lower:.2f}, {elbo.upper:.2f}] +- {elbo.upper_standard_error:.2f}"
        )
        samples = posterior_draws(net, guide, options.samples)
        prediction = pp.predict(net.model, samples, net.x, progress=False)
        p, q = (predictive(net, each) for each in (prediction, truth))
        agreement = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
        print(
            f"  {'':15s} total variation {total_variation(p, q):.3f}"
            + (f", agreement {agreement:.3f}" if net.num_classes else "")
            + f", marginals {distance_of_marginals(samples, aligned, symmetry):.2f} sd apart"
        )
    verdict(evidence, elbos["AutoNormal"], elbos["AutoSymmetrized"])


def posterior_draws(net: Net, guide: AutoGuide, num: int) -> Values:
    """Independent draws of a guide, shape ``(num, *site shape)``."""
    with torch.no_grad():
        draws = [guide(net.x, net.y) for _ in range(num)]
    return {site: torch.stack([draw[site] for draw in draws]) for site in draws[0]}


def verdict(
    evidence: pp.Evidence, plain: pp.SymmetrizedELBO, symmetrized: pp.SymmetrizedELBO
) -> None:
    """PASS if ELBO(q^G) lies between ELBO(q) and the evidence, by two standard errors."""
    gap = evidence.log_evidence - symmetrized.upper
    gain = symmetrized.lower - plain.base
    passed = gap > 2 * math.hypot(evidence.standard_error, symmetrized.upper_standard_error) and (
        gain > 2 * math.hypot(symmetrized.lower_standard_error, plain.base_standard_error)
    )
    print(
        f"  {'PASS' if passed else 'MISS'}: ELBO(q^G) of AutoSymmetrized is {gap:.2f} nats below "
        f"the evidence, and {gain:.2f} above ELBO(q) of AutoNormal"
    )


def main() -> None:
    """Compare on every net."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", nargs="*", choices=nets(), default=list(nets()))
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    pyro.settings.set(module_local_params=True)
    torch.set_default_dtype(torch.float64)
    for name in options.net:
        net = nets()[name]
        print(f"\n{name}: {len(net.x)} points, {UNITS} units", flush=True)
        compare(net, options)


if __name__ == "__main__":
    main()
