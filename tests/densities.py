"""Densities to estimate with: draws of a problem's guide, and synthetic layers."""

from dataclasses import replace

import pyro
import torch
from pyro import poutine

import pyro_perm as pp
from pyro_perm.density.base_guides import read_density
from pyro_perm.density.factorized import STICK_BREAKING, FactorizedDensity
from pyro_perm.posterior.bounds.draws import Draw
from pyro_perm.trace_sites import log_ratio_nodes


def draw(problem, num_particles=None):
    """A guide with random parameters, a trace of its base, and the density of the draw."""
    guide = problem.guide(pp.Exact(), permute=False, init_scale=0.7)
    guide(*problem.args)
    particles = pyro.plate("particles", num_particles, dim=-2) if num_particles else None
    with poutine.trace() as tracer:
        (particles(guide) if particles else guide)(*problem.args)
    density = read_density(tracer.trace.nodes, guide.symmetry.group)
    if num_particles:
        density = flatten_batch(density)
    return guide, tracer.trace, density


def traced_log_ratio(trace):
    """``log q^G(w) - log q(w)`` in the trace of a symmetrized guide."""
    (node,) = log_ratio_nodes(trace.nodes).values()
    return node["fn"].log_factor


def flatten_batch(density):
    num, rank = density.batch_shape.numel(), density.symmetry.site_rank
    values = {s: v.reshape(num, *v.shape[v.dim() - rank(s) :]) for s, v in density.values.items()}
    return replace(density, values=values, batch_shape=torch.Size([num]))


def synthetic(spec, shapes, loc_scale, num_samples, scale=0.5, seed=0):
    torch.manual_seed(seed)
    symmetry = pp.PermutationSymmetry(spec, shapes=shapes)
    locs = {site: loc_scale * torch.randn(shape) for site, shape in shapes.items()}
    values = {s: loc + scale * torch.randn(num_samples, *loc.shape) for s, loc in locs.items()}
    scales = {site: torch.full(shape, scale) for site, shape in shapes.items()}
    return FactorizedDensity(symmetry.group, values, locs, scales, torch.Size([num_samples]))


def one_layer(n, d, loc_scale, num_samples):
    return synthetic({"hidden": {"w": 0}}, {"w": (n, d)}, loc_scale, num_samples)


def two_layers(n, d, loc_scale, num_samples, **kwargs):
    shapes = {"w1": (n, d), "b1": (n,), "w2": (n, n), "b2": (n,), "w3": (1, n)}
    spec = {"first": {"w1": 0, "b1": 0, "w2": 1}, "second": {"w2": 0, "b2": 0, "w3": 1}}
    return synthetic(spec, shapes, loc_scale, num_samples, **kwargs)


def redraw(density, num):
    """Fresh draws of ``w`` as a batch, from a factorized density whose parameters have none."""
    values = {}
    for site, loc in density.locs.items():
        noise = torch.randn(num, *loc.shape, dtype=loc.dtype, device=loc.device)
        value = loc + density.scales[site] * noise
        simplex = density.symmetry.is_simplex(site)
        values[site] = STICK_BREAKING(value.double()) if simplex else value
    return replace(density, values=values, batch_shape=torch.Size([num]))


def draws_from(density):
    """Fresh draws of ``w``, one at a time, as certificates take them from a guide."""

    def draw():
        fresh = redraw(density, 1)
        values = {site: value[0] for site, value in fresh.values.items()}
        return Draw(replace(fresh, values=values, batch_shape=torch.Size()))

    return draw


def mean_and_error(values):
    return values.mean().item(), values.std().item() / len(values) ** 0.5
