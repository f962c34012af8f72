"""How narrow are the certified intervals for I(g; w)?

Every row draws a mean-field posterior q, samples of it, and both bounds on I from these samples,
in nats. Synthetic posteriors have locs drawn from N(0, scale^2) and all standard deviations 0.5; a
unit has d entries (one hidden layer), or d inputs (two hidden layers of a d-h-h-1 net with biases).

--exact      one layer of 4 to 16 units: does the interval from importance sampling contain the
             exact I of the same samples (within 4 standard errors), and is it below 0.3 nats wide?
--wide       one layer of 100 and 500 units: is it narrower than max(1 nat, 3% of log n!)?
--coupled    two layers, 20-20 and 50-50, by the portfolio: the whole table; rows wider than a nat
             again with 1600 temperatures of annealing
--trained    nets with two hidden layers of 30, trained with the Bethe objective on scikit-learn's
             wine and diabetes: is the portfolio's interval narrower than max(1 nat, 8% of log |G|)?

Run with one or more of these; without any, all parts run, in about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from sklearn.datasets import load_diabetes, load_wine
from tqdm import trange

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.posterior.bounds.certificate import certify
from pyro_perm.posterior.bounds.draws import Draw

LOC_SCALES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
ENTRIES = (2, 5, 20)
SD = 0.5


def synthetic(spec, shapes, loc_scale, seed=0):
    """Draws from a random mean-field posterior, one at a time."""
    torch.manual_seed(seed)
    symmetry = pp.PermutationSymmetry(spec, shapes=shapes).group
    locs = {site: loc_scale * torch.randn(shape) for site, shape in shapes.items()}
    scales = {site: torch.full(shape, SD) for site, shape in shapes.items()}

    def draw():
        values = {site: loc + SD * torch.randn(loc.shape) for site, loc in locs.items()}
        return Draw(FactorizedDensity(symmetry, values, locs, scales, torch.Size()))

    return draw


def one_layer(n, d, loc_scale):
    return synthetic({"hidden": {"w": 0}}, {"w": (n, d)}, loc_scale)


def two_layers(n, d, loc_scale):
    shapes = {"w1": (n, d), "b1": (n,), "w2": (n, n), "b2": (n,), "w3": (1, n)}
    spec = {"first": {"w1": 0, "b1": 0, "w2": 1}, "second": {"w2": 0, "b2": 0, "w3": 1}}
    return synthetic(spec, shapes, loc_scale)


def interval(result, seconds):
    return (
        f"[{result.lower:9.3f}, {result.upper:9.3f}] +- {result.lower_standard_error:.3f} "
        f"width {result.upper - result.lower:7.3f}  {seconds:5.1f} s"
    )


def verdict(passed):
    return "PASS" if passed else "MISS"


def exact(num_samples=32):
    print("\none layer, against Exact (target: contains I, width < 0.3)")
    for n in (4, 8, 12, 16):
        for d in ENTRIES:
            for loc_scale in LOC_SCALES:
                draw = one_layer(n, d, loc_scale)
                draws = [draw() for _ in range(num_samples)]
                start = time.perf_counter()
                sampled = certify(iter(draws).__next__, num_samples, [pp.ImportanceSampled(64)])
                seconds = time.perf_counter() - start
                truth = certify(iter(draws).__next__, num_samples, [pp.Exact()]).lower
                below, above = sampled.lower - truth, truth - sampled.upper
                contained = all(
                    x.mean() <= 4 * x.std() / num_samples**0.5 + 1e-9 for x in (below, above)
                )
                result = sampled.summary()
                print(
                    f"n {n:3d} d {d:3d} loc scale {loc_scale:3.1f}: exact {truth.mean():7.3f} in "
                    f"{interval(result, seconds)} "
                    f"{verdict(contained and result.upper - result.lower < 0.3)}",
                    flush=True,
                )


def wide():
    print("\none layer (target: width < max(1, 3% of log n!))")
    for n, num_samples, num_permutations in ((100, 16, 32), (500, 4, 4)):
        for d in ENTRIES:
            for loc_scale in LOC_SCALES:
                draw = one_layer(n, d, loc_scale)
                start = time.perf_counter()
                methods = [pp.ImportanceSampled(num_permutations)]
                result = certify(draw, num_samples, methods).summary()
                target = max(1.0, 0.03 * result.log_order)
                print(
                    f"n {n:3d} d {d:3d} loc scale {loc_scale:3.1f}: "
                    f"{interval(result, time.perf_counter() - start)} target {target:.1f} "
                    f"{verdict(result.upper - result.lower < target)}",
                    flush=True,
                )


def coupled():
    print("\ntwo layers, by the portfolio (log|G| = 85 and 297)")
    for n, num_samples in ((20, 16), (50, 6)):
        for d in ENTRIES:
            for loc_scale in LOC_SCALES:
                row = f"{n}-{n} d {d:3d} loc scale {loc_scale:3.1f}"
                draw = two_layers(n, d, loc_scale)
                start = time.perf_counter()
                result = certify(draw, num_samples).summary()
                print(f"{row}: {interval(result, time.perf_counter() - start)}", flush=True)
                if result.upper - result.lower > 1:
                    start = time.perf_counter()
                    longer = [pp.AnnealedImportanceSampled(num_steps=1600)]
                    result = certify(draw, num_samples, longer).summary()
                    print(
                        f"{'1600 temperatures':>{len(row)}s}: "
                        f"{interval(result, time.perf_counter() - start)}",
                        flush=True,
                    )


def network(likelihood, num_outputs, units=30):
    """A model with two hidden layers and fan-in scaled Normal priors."""

    def normal(name, *shape):
        scale = 1 / shape[-1] ** 0.5 if len(shape) > 1 else 1.0
        return pyro.sample(name, dist.Normal(torch.zeros(shape), scale).to_event(len(shape)))

    def model(x, y):
        h = torch.relu(x @ normal("w1", units, x.shape[-1]).T + normal("b1", units))
        h = torch.relu(h @ normal("w2", units, units).T + normal("b2", units))
        output = h @ normal("w3", num_outputs, units).T + normal("b3", num_outputs)
        with pyro.plate("data", len(x)):
            pyro.sample("y", likelihood(output), obs=y)

    return model


def standardized(x):
    x = torch.as_tensor(x, dtype=torch.get_default_dtype())
    return (x - x.mean(0)) / x.std(0)


def datasets():
    x, y = load_wine(return_X_y=True)
    classify = network(lambda logits: dist.Categorical(logits=logits), 3)
    yield "wine", classify, standardized(x), torch.as_tensor(y)
    x, y = load_diabetes(return_X_y=True)
    regress = network(lambda output: dist.Normal(output.squeeze(-1), 0.7), 1)
    yield "diabetes", regress, standardized(x), standardized(y)


def trained(num_steps=3000, num_samples=32):
    print("\ntwo hidden layers of 30, trained (target: width < max(1, 8% of log |G|))")
    spec = {"first": {"w1": 0, "b1": 0, "w2": 1}, "second": {"w2": 0, "b2": 0, "w3": 1}}
    for name, model, x, y in datasets():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.05)
        guide = pp.AutoSymmetrized(base, pp.PermutationSymmetry(spec), permute=False)
        svi = SVI(model, guide, Adam({"lr": 0.01}), pp.TraceSymmetrized_ELBO())
        for _ in trange(num_steps, desc=name, leave=False):
            svi.step(x, y)
        start = time.perf_counter()
        elbo = pp.symmetrized_elbo(model, guide, x, y, num_samples=num_samples)
        result = elbo.mutual_information
        target = max(1.0, 0.08 * result.log_order)
        print(
            f"{name}: I in {interval(result, time.perf_counter() - start)} of "
            f"{result.log_order:.0f}, target {target:.1f} "
            f"{verdict(result.upper - result.lower < target)}  ({result.lower_method}; "
            f"{result.upper_method})\n    ELBO(q) {elbo.base:.2f}, ELBO(q^G) in "
            f"[{elbo.lower:.2f}, {elbo.upper:.2f}]",
            flush=True,
        )


if __name__ == "__main__":
    parts = {part.__name__: part for part in (exact, wide, coupled, trained)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for part in parts:
        parser.add_argument(f"--{part}", action="store_true")
    chosen = vars(parser.parse_args())
    torch.set_default_dtype(torch.float64)
    for part, run in parts.items():
        if chosen[part] or not any(chosen.values()):
            run()
