"""Stacks of networks maximize what the package's losses do, network by network."""

import math
from dataclasses import replace
from itertools import permutations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from stacked_network import Layout, log_likelihood, outputs, pyro_model, pyro_sites
from stacked_objectives import METHODS, Posteriors, certified

import pyro_perm as pp
from pyro_perm.density.density import gather_pairs
from pyro_perm.rescaling import orbit_pairs

LAYOUT = Layout(inputs=3, num_units=5)
ROWS = 7
ENDS = {"w0": (0, 1), "b0": (0, 1), "w1": (1, -1)}
PERMUTATIONS = pp.PermutationSymmetry({"hidden": {"w0": 0, "b0": 0, "w1": 1}})


def symmetry_with_scales(permute):
    axes = {site: pp.Axis(dim, scale=power, permute=permute) for site, (dim, power) in ENDS.items()}
    return pp.PermutationSymmetry({"hidden": axes})


PRIOR_SCALE = 1.5


@pytest.fixture
def _double_precision(_single_precision):
    torch.set_default_dtype(torch.float64)


def posteriors(runs, spread=0.4, layout=LAYOUT):
    source = torch.Generator().manual_seed(0)
    loc = torch.stack([layout.initial(source) for _ in range(runs)])
    scale = spread * (torch.rand(loc.shape, generator=source) + 0.5)
    value = loc + scale * torch.randn(loc.shape, generator=source)
    prior = layout.prior_scale(torch.full((runs,), PRIOR_SCALE))
    return Posteriors(layout, value, loc, scale, prior)


def rows(runs):
    source = torch.Generator().manual_seed(1)
    x = torch.randn(runs, ROWS, LAYOUT.inputs, generator=source)
    return x, torch.randn(runs, ROWS, generator=source)


def guide_of(q):
    """The factors of one network, as a guide of :func:`pyro_model`."""
    locs, scales = (pyro_sites(LAYOUT, kind[0]) for kind in (q.loc, q.scale))

    def guide(x, y=None):
        for site, loc in locs.items():
            factor = dist.Normal(loc, scales[site])
            pyro.sample(site, factor.to_event(loc.dim()) if loc.dim() else factor)

    return guide


def vector_of(sites):
    units = torch.cat([sites["w0"], sites["b0"].unsqueeze(-1), sites["w1"].mT], -1)
    return torch.cat([units.flatten(), sites["b1"], sites["log_noise"].view(1)])


def drawn_by(guide, x, y, seed):
    pyro.set_rng_seed(seed)
    nodes = poutine.trace(guide).get_trace(x, y).nodes
    return {site: nodes[site]["value"] for site in ("w0", "b0", "w1", "b1", "log_noise")}


@pytest.mark.usefixtures("_double_precision")
@pytest.mark.parametrize("method", [name for name in METHODS if "InfoNCE" not in name])
def test_the_bound_is_that_of_the_loss(method):
    q = posteriors(1)
    (x,), (y,) = rows(1)
    model, guide = pyro_model(LAYOUT, PRIOR_SCALE), guide_of(q)
    loss = {
        "mean field": TraceMeanField_ELBO(),
        "permutations": pp.TraceSymmetrized_ELBO(symmetry=PERMUTATIONS),
        "scales": pp.TraceSymmetrized_ELBO(symmetry=symmetry_with_scales(False)),
        "permutations and scales": pp.TraceSymmetrized_ELBO(symmetry=symmetry_with_scales(True)),
    }[method]
    loss.loss(model, guide, x, y)  # Verifies the symmetry, with draws of its own.
    pyro.set_rng_seed(3)
    expected = -loss.loss(model, guide, x, y)
    q = replace(q, value=vector_of(drawn_by(guide, x, y, 3)).unsqueeze(0))
    fit = log_likelihood(LAYOUT, q.value, x[None], y[None]).sum(-1)
    assert (fit + METHODS[method]()(q)).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("_double_precision")
def test_scales_integrate_over_each_unit_and_the_prior_over_its_orbit():
    """By sums over a fine grid of rescalings of each unit."""
    q = posteriors(2)
    t = torch.linspace(-12, 12, 40_001)
    expected = 0.0
    for entries, sign in ((q.prior_entries, 1), (q.entries, -1)):
        values, locs, scales = (kind.unsqueeze(-3) for kind in entries)
        powers = torch.tensor([1.0] * (LAYOUT.width - 1) + [-1.0])
        moved = values * (t[:, None] * powers).exp().unsqueeze(-2)
        log_q = dist.Normal(locs, scales).log_prob(moved).sum(-1)
        along = log_q + powers.sum() * t[:, None]
        expected = expected + sign * (along.logsumexp(-2) + math.log(t[1] - t[0])).sum(-1)
    expected = expected - q.kl()[..., -2:].sum(-1)
    torch.testing.assert_close(METHODS["scales"]()(q), expected, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("_double_precision")
def test_permutations_and_scales_sum_over_all_permutations_of_the_integrals():
    q = posteriors(2)
    pairs = orbit_pairs(q.entries, q.degrees, tolerance=1e-9).log_densities
    everyone = torch.tensor(list(permutations(range(LAYOUT.num_units))))
    sums = gather_pairs(pairs, everyone.unsqueeze(1).expand(-1, 2, -1)).logsumexp(0)
    expected = METHODS["scales"]()(q) - sums + math.lgamma(LAYOUT.num_units + 1)
    found = METHODS["permutations and scales"]()(q)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("_double_precision")
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_values(method):
    q = posteriors(2)
    objective = METHODS[method]()
    directions = [torch.randn_like(q.loc) for _ in range(3)]

    def value(step):
        torch.manual_seed(5)  # InfoNCE draws permutations.
        moved = [part + step * way for part, way in zip(parts, directions, strict=True)]
        return objective(Posteriors(LAYOUT, *moved, q.prior_scale)).sum()

    parts = (q.value, q.loc, q.scale)
    leaves = [part.clone().requires_grad_() for part in parts]
    torch.manual_seed(5)
    found = objective(Posteriors(LAYOUT, *leaves, q.prior_scale)).sum()
    gradients = torch.autograd.grad(found, leaves, materialize_grads=True)
    slope = sum((grad * way).sum() for grad, way in zip(gradients, directions, strict=True))
    expected = (value(1e-4) - value(-1e-4)) / 2e-4
    torch.testing.assert_close(slope, expected, rtol=2e-3, atol=2e-2)


@pytest.mark.usefixtures("_double_precision")
def test_rescaling_a_factor_changes_no_bound_over_scales():
    q = posteriors(1)
    log_scales = torch.linspace(-2, 2, LAYOUT.num_units).expand(1, -1)

    def rescale(vector):
        units = q.degrees.rescale(LAYOUT.units(vector), log_scales)
        return torch.cat([units.flatten(1), vector[:, -2:]], -1)

    moved = replace(q, **{kind: rescale(getattr(q, kind)) for kind in ("value", "loc", "scale")})
    for method in ("scales", "permutations and scales"):
        objective = METHODS[method]()
        torch.testing.assert_close(objective(moved), objective(q), rtol=0, atol=1e-3)


@pytest.mark.usefixtures("_double_precision")
def test_certified_bounds_lie_below_what_is_trained_and_above_the_plain_elbo():
    torch.manual_seed(0)
    q = posteriors(400)
    bounds = {kind: value.mean().item() for kind, value in certified(q, 16).items()}
    both, error = METHODS["permutations and scales"]()(q), 0.3
    assert bounds["mean field"] < bounds["permutations"] < bounds["permutations and scales"]
    assert bounds["mean field"] < bounds["scales"] < bounds["permutations and scales"]
    assert bounds["permutations and scales"] <= both.mean().item() + error


def test_the_stack_computes_what_each_network_does():
    q = posteriors(3)
    x, y = rows(3)
    for run in range(3):
        sites = pyro_sites(LAYOUT, q.value[run])
        hidden = torch.relu(x[run] @ sites["w0"].mT + sites["b0"])
        expected = (hidden @ sites["w1"].mT).squeeze(-1) + sites["b1"]
        torch.testing.assert_close(outputs(LAYOUT, q.value, x)[run], expected)
        conditioned = poutine.condition(pyro_model(LAYOUT, PRIOR_SCALE), sites)
        trace = poutine.trace(conditioned).get_trace(x[run], y[run])
        trace.compute_log_prob()
        ours = log_likelihood(LAYOUT, q.value, x, y)[run]
        torch.testing.assert_close(ours, trace.nodes["y"]["log_prob"])
