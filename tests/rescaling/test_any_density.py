import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import distributions as dist
from torch.testing import assert_close

from pyro_perm.rescaling import (
    Degrees,
    UnitEntries,
    log_orbit_mass,
    log_orbit_mass_under,
    sample_along_orbits_under,
)

DEGREES = Degrees.of((1, 1, -1))


def values(seed=0):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


def density_of(distribution):
    return lambda entries: distribution.log_prob(entries).sum(-1)


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_equals_the_integral_for_a_normal_distribution(spread):
    locs, scales = spread * values(1), spread * values(2).abs()
    entries = UnitEntries(spread * values(), locs, scales)
    expected = log_orbit_mass(entries, DEGREES, tolerance=1e-10)
    normal = density_of(dist.Normal(locs, scales))
    mass = log_orbit_mass_under(normal, entries.values, DEGREES, tolerance=1e-10)
    assert_close(mass, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Laplace(torch.zeros(3), 0.7),
        dist.StudentT(3.0, torch.zeros(3), 0.5),
        dist.Cauchy(torch.zeros(3), 2.0),
    ],
)
def test_equals_adaptive_quadrature(prior):
    units = values()
    mass = log_orbit_mass_under(density_of(prior), units, DEGREES)
    for unit, log_mass in zip(units, mass, strict=True):
        here = prior.log_prob(unit).sum()

        def density(t, unit=unit, here=here):
            moved = DEGREES.rescale(unit.unsqueeze(0), torch.tensor([t]))
            return math.exp(prior.log_prob(moved).sum() - here + t)

        expected, _ = integrate.quad(density, -30, 30, epsabs=0, epsrel=1e-10, limit=400)
        assert_close(log_mass.item(), math.log(expected), rtol=0, atol=1e-7)


def test_gradient_reaches_values_and_parameters():
    scale = torch.tensor(0.8, requires_grad=True)

    def mass(units, scale):
        prior = dist.StudentT(4.0, torch.zeros(()), scale)
        return log_orbit_mass_under(density_of(prior), units, DEGREES, tolerance=1e-10)

    assert torch.autograd.gradcheck(mass, (values().requires_grad_(), scale))


@pytest.mark.parametrize("which", ["values", "scale"])
def test_second_derivatives_are_refused(which):
    leaves = {"values": values().requires_grad_(), "scale": torch.ones((), requires_grad=True)}
    prior = dist.StudentT(4.0, torch.zeros(()), leaves["scale"])
    mass = log_orbit_mass_under(density_of(prior), leaves["values"], DEGREES).sum()
    (grad,) = torch.autograd.grad(mass, leaves[which], create_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(grad.sum(), leaves[which])


def test_draws_follow_the_density_along_the_orbit():
    prior = dist.Laplace(torch.zeros(3), 0.7)
    unit = torch.tensor([0.4, -1.0, 2.0])
    sample = sample_along_orbits_under(density_of(prior), unit.expand(4000, 3), DEGREES)
    t = torch.linspace(-12, 12, 20_001)
    moved = DEGREES.rescale(unit.expand(len(t), 3), t)
    heights = prior.log_prob(moved).sum(-1) + DEGREES.jacobian * t
    cumulative = (heights - heights.logsumexp(0)).exp().cumsum(0).numpy()
    law = stats.kstest(sample.numpy(), lambda x: np.interp(x, t.numpy(), cumulative))
    assert law.pvalue > 1e-3


def test_densities_that_cannot_be_integrated_are_refused():
    def flat(entries):
        return entries.sum(-1) * 0

    with pytest.raises(ValueError, match="diverges"):
        log_orbit_mass_under(flat, values(), DEGREES)
    with pytest.raises(ValueError, match="diverges"):
        sample_along_orbits_under(flat, values(), DEGREES)


def test_densities_that_are_too_rough_are_refused():
    def rough(entries):
        jumps = (entries.abs() * 1e3).floor() % 2
        return (-entries.square() + jumps).sum(-1)

    with pytest.raises(ValueError, match="rough"):
        log_orbit_mass_under(rough, values(), DEGREES)
    with pytest.raises(ValueError, match="too fine"):
        sample_along_orbits_under(rough, values().expand(200, 4, 3), DEGREES)
