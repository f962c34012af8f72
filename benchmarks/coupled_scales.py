"""Scales of all layers at once, by Laplace's method, against those of layers that share no tensor.

A network of several ReLU layers is trained as mean field, over the exact scales of the layers that
the package rescales at once, and over those of all layers with Laplace's approximation of both
integrals along the orbits; no permutations. Every posterior is scored by two bounds on ELBO(q~), in
nats: over the exact scales, and over all, certified by importance sampling along the orbits. One
file a run is kept in ``benchmarks/results/coupled_scales``. Run ``python
benchmarks/coupled_scales.py --data-dir ../shared/data/uci --case diabetes-30-30 yacht-20-20-20``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from networks import network
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from rescaling import (
    CASES,
    FINAL_LEARNING_RATE,
    LEARNING_RATE,
    data_of,
    read_options,
    results_of,
    symmetry_of,
)
from results_store import Mean
from torch import Tensor

import pyro_perm as pp
from pyro_perm.closed_form import ClosedFormTrace_ELBO
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.rescaling import (
    CoupledExponent,
    Coupling,
    Layer,
    UnitEntries,
    coupled_log_mass,
    sampled_coupled_log_mass,
)

METHODS = ("mean field", "exact subset", "all layers, Laplace")
SCORES = {"subset": 1, "all layers": 1, "log_likelihood": 3}
NUM_IMPORTANCE = 256


class AllScales(pp.Estimator):
    """``log q_S / q - log p_S / p`` over the scales of all layers, by Laplace's method."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        sizes = [inputs, *hidden, outputs]
        self.num_hidden = len(hidden)
        self.prior_scales = {f"w{k}": size**-0.5 for k, size in enumerate(sizes[:-1])}

    def log_ratio(self, density: FactorizedDensity) -> Tensor:
        """Without permutations."""
        guide, prior = self.exponents(density)
        return coupled_log_mass(guide) - coupled_log_mass(prior)

    def bound(self, density: FactorizedDensity) -> Tensor:
        """An upper bound in expectation: the gain of scales is bounded from below."""
        guide, prior = self.exponents(density)
        _, above = sampled_coupled_log_mass(guide, NUM_IMPORTANCE)
        below, _ = sampled_coupled_log_mass(prior, NUM_IMPORTANCE)
        return above - below

    def exponents(self, density: FactorizedDensity) -> tuple[CoupledExponent, CoupledExponent]:
        """Those of the guide's factors and of the prior, along the orbit of the draw."""
        zeros = {site: torch.zeros_like(loc) for site, loc in density.locs.items()}
        scales = {
            site: torch.full_like(scale, self.prior_scales.get(site, 1.0))
            for site, scale in density.scales.items()
        }
        guide = self.exponent(density.values, density.locs, density.scales)
        return guide, self.exponent(density.values, zeros, scales)

    def exponent(self, *kinds: Mapping[str, Tensor]) -> CoupledExponent:
        """From values, locs and scales of the sites."""
        last = self.num_hidden - 1
        layers = []
        for k in range(self.num_hidden):
            incoming = [self.entries(kinds, f"b{k}", lambda b: b.unsqueeze(-1))]
            if not k:
                incoming.append(self.entries(kinds, "w0", lambda w: w))
            outgoing = self.entries(kinds, f"w{k + 1}", lambda w: w.mT)
            if k < last:
                outgoing = UnitEntries(*(part[..., :0] for part in outgoing))
            joined = UnitEntries(*(torch.cat(parts, -1) for parts in zip(*incoming, strict=True)))
            layers.append(Layer(joined, outgoing))
        couplings = [
            Coupling(k, k - 1, self.entries(kinds, f"w{k}", lambda w: w.unsqueeze(-1)))
            for k in range(1, self.num_hidden)
        ]
        return CoupledExponent.of(layers, couplings)

    @staticmethod
    def entries(kinds: Sequence[Mapping[str, Tensor]], site: str, arrange: Any) -> UnitEntries:
        """A site's values, locs and scales, arranged alike."""
        return UnitEntries(*(arrange(kind[site]) for kind in kinds))


def run(case: str, method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train from the seed's start, then score."""
    name, hidden = CASES[case]
    data = data_of(name, seed, options.data_dir)
    inputs, outputs = data.x.shape[1], data.num_classes or 1
    model = network(inputs, hidden, outputs, classify=data.num_classes is not None)
    args, everything = (data.x, data.y), AllScales(inputs, hidden, outputs)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.05)
    base(*args)
    loss: Any = ClosedFormTrace_ELBO()
    if method == "exact subset":
        loss = pp.TraceSymmetrized_ELBO(symmetry=symmetry_of("scales", len(hidden)))
    elif method != "mean field":
        plain = symmetry_of("permutations", len(hidden))
        loss = pp.TraceSymmetrized_ELBO(symmetry=plain, estimator=everything)
    pyro.set_rng_seed(seed)
    decay = (FINAL_LEARNING_RATE / LEARNING_RATE) ** (1 / options.steps)
    svi = SVI(model, base, ClippedAdam({"lr": LEARNING_RATE, "lrd": decay}), loss)
    for _ in range(options.steps):
        svi.step(*args)
    pyro.set_rng_seed(seed)
    subset = pp.symmetrized_elbo(
        model,
        base,
        *args,
        num_samples=options.samples,
        symmetry=symmetry_of("scales", len(hidden)),
        estimator=pp.Exact(),
        progress=False,
    )
    pyro.set_rng_seed(seed)
    prediction = pp.predict(
        model, base, data.test_x, data.test_y, num_samples=options.samples, progress=False
    )
    pyro.set_rng_seed(seed)
    return {
        "subset": subset.lower,
        "all layers": subset.base - mean_bound(everything, base, args, options.samples, hidden),
        "base": subset.base,
        "log_likelihood": prediction.log_predictive_density.mean().item(),
    }


@torch.no_grad()
def mean_bound(
    everything: AllScales, base: AutoNormal, args: Any, num: int, hidden: Sequence[int]
) -> float:
    """Average of the certified log-ratio over draws of the base guide."""
    sites = [f"{kind}{k}" for k in range(len(hidden) + 1) for kind in "wb"]
    locs = {site: getattr(base.locs, site) for site in sites}
    scales = {site: getattr(base.scales, site) for site in sites}
    group = pp.PermutationSymmetry(
        {"all": {f"b{len(hidden)}": 0}}, shapes={s: tuple(locs[s].shape) for s in sites}
    ).group
    values = {s: locs[s] + scales[s] * torch.randn(num, *locs[s].shape) for s in sites}
    density = FactorizedDensity(group, values, locs, scales, torch.Size([num]))
    return everything.bound(density).mean().item()


def main() -> None:
    """Compute what is missing, and print a table for each case."""
    options = read_options(__doc__, case=["diabetes-30-30"], seeds=3, steps=3000, samples=100)
    for case, results in results_of("coupled_scales", METHODS, run, options).items():
        print(f"\n{case}, {options.seeds} seeds")
        heads = ("ELBO(q~), subset", "all layers >=", "test log-lik.")
        print(f"  {'':20s}" + "".join(f" {head:>18s}" for head in heads))
        for method, runs in results.items():
            columns = [Mean.of([r[s] for r in runs]).text(digits) for s, digits in SCORES.items()]
            print(f"  {method:20s}" + "".join(f" {column:>18s}" for column in columns))


if __name__ == "__main__":
    main()
