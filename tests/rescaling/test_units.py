import math

import dense_grid
import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from pyro_perm.rescaling import (
    Degrees,
    UnitEntries,
    log_orbit_mass,
    log_orbit_mass_ratio,
    orbit_pairs,
    smallest_divergences,
)

POWERS = [
    (1, 1, -1),
    (1, -1),
    (1, 1, 1, -1, -1, -1),
    (-1, 1, 0, 1, -1, -1),
    (0, 1, 1),
]


def units(powers, *batch, seed=0, spread=1.0):
    """Units with entries and factors of any size."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, 4, len(powers))
    values, locs, log_scales = torch.randn(3, *shape, generator=generator)
    return UnitEntries(spread * values, spread * locs, (0.3 * log_scales).exp())


@pytest.mark.parametrize("powers", POWERS)
def test_pairs_are_integrals_over_scales(powers):
    entries = units(powers)
    pairs = orbit_pairs(entries, Degrees.of(powers), tolerance=1e-10)
    k = torch.tensor(powers, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            expected = dense_grid.log_orbit_density(
                entries.values[j], entries.locs[i], entries.scales[i], k
            )
            assert_close(pairs.log_densities[i, j], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("powers", POWERS)
def test_mass_is_the_pair_of_a_unit_with_itself(powers):
    entries, degrees = units(powers, 3), Degrees.of(powers)
    mass = log_orbit_mass(entries, degrees, tolerance=1e-10)
    own = Normal(entries.locs, entries.scales).log_prob(entries.values).sum(-1)
    pairs = orbit_pairs(entries, degrees, tolerance=1e-10)
    diagonal = pairs.log_densities.diagonal(dim1=-2, dim2=-1)
    assert_close(mass + own, diagonal, rtol=0, atol=1e-9)


@pytest.mark.parametrize("powers", POWERS)
def test_density_of_an_orbit_does_not_depend_on_the_place(powers):
    """``f_Q(t . w) = f_Q(w) e^{-a t}``, for volumes are rescaled too."""
    entries, degrees = units(powers), Degrees.of(powers)
    t = torch.tensor([-3.0, -0.5, 0.2, 4.0])
    moved = entries._replace(values=degrees.rescale(entries.values, t))
    here, there = (
        orbit_pairs(each, degrees, tolerance=1e-10).log_densities for each in (entries, moved)
    )
    assert_close(there + degrees.jacobian * t, here, rtol=0, atol=1e-8)


@pytest.mark.parametrize("powers", POWERS)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_of_pairs_are_those_of_finite_differences(powers, batch):
    degrees = Degrees.of(powers)
    weights = torch.randn(*batch, 4, 4)

    class Weighted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *entries):
            ctx.pairs = orbit_pairs(UnitEntries(*entries), degrees, tolerance=1e-11)
            return (weights * ctx.pairs.log_densities).sum()

        @staticmethod
        def backward(ctx, grad_output):
            return tuple(ctx.pairs.gradients(weights * grad_output))

    inputs = [x.requires_grad_() for x in units(powers, *batch)]
    assert torch.autograd.gradcheck(Weighted.apply, inputs)


@pytest.mark.parametrize("powers", POWERS)
def test_gradient_of_mass_is_that_of_finite_differences(powers):
    degrees = Degrees.of(powers)
    inputs = [x.requires_grad_() for x in units(powers)]
    assert torch.autograd.gradcheck(
        lambda *entries: log_orbit_mass(UnitEntries(*entries), degrees, tolerance=1e-11), inputs
    )


def test_gradient_of_mass_sums_over_what_is_broadcast():
    degrees = Degrees.of((1, 1, -1))
    values = units((1, 1, -1)).values.requires_grad_()
    scale = torch.tensor(1.5, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w, s: log_orbit_mass(UnitEntries(w, torch.zeros(()), s), degrees, tolerance=1e-11),
        (values, scale),
    )


def test_gradients_vanish_along_the_flat_direction():
    """A factor that is rescaled itself gives all orbits the same densities."""
    powers = (1, 1, -1)
    degrees = Degrees.of(powers)
    pairs = orbit_pairs(units(powers), degrees, tolerance=1e-11)
    grads = pairs.gradients(torch.rand(4, 4))
    k = torch.tensor(powers)
    along = (k * (grads.locs * pairs.entries.locs + grads.scales * pairs.entries.scales)).sum(-1)
    assert_close(along, torch.zeros(4), rtol=0, atol=1e-8)


def test_ratio_of_masses_is_their_difference():
    """With its gradient, also where the prior leaves entries out that are not rescaled."""
    powers = (1, 1, 0, -1)
    guide = UnitEntries(*(kind.requires_grad_() for kind in units(powers, 2)))
    degrees, of_prior = Degrees.of(powers), Degrees.of((1, 1, -1))
    values = guide.values[..., [0, 1, 3]]
    prior = UnitEntries(values, torch.zeros(()), torch.tensor(1.5, requires_grad=True))
    inputs = (*guide, prior.scales)
    ratio = log_orbit_mass_ratio(guide, degrees, prior, of_prior)
    difference = log_orbit_mass(guide, degrees) - log_orbit_mass(prior, of_prior)
    assert_close(ratio, difference, rtol=0, atol=1e-9)
    grads, expected = (
        torch.autograd.grad(x.sum(), inputs, retain_graph=True) for x in (ratio, difference)
    )
    assert_close(grads, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("width", [6, 300])
def test_single_precision_costs_little(width):
    """Also where integrands are so sharp that they are expanded."""
    powers = (1,) * width + (-1,) * 4
    entries, degrees = units(powers, seed=2), Degrees.of(powers)
    single = UnitEntries(*(kind.float() for kind in entries))
    for log_density in (
        lambda each: log_orbit_mass(each, degrees),
        lambda each: orbit_pairs(each, degrees).log_densities.diagonal(),
    ):
        assert_close(log_density(single), log_density(entries), rtol=1e-6, atol=2e-4)
    weights = torch.randn(4, 4)
    found, expected = (orbit_pairs(each, degrees).gradients(weights) for each in (single, entries))
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double(), other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_second_derivatives_of_mass_are_refused():
    entries = units((1, 1, -1))
    values = entries.values.requires_grad_()
    mass = log_orbit_mass(entries, Degrees.of((1, 1, -1))).sum()
    (grad,) = torch.autograd.grad(mass, values, create_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(grad.sum() + values.square().sum(), values)


def test_distant_pairs_are_bounded_from_above():
    powers = (1, 1, 1, 1, -1)
    degrees = Degrees.of(powers)
    entries = units(powers, spread=40.0)
    entries = entries._replace(values=entries.locs + 0.5)
    pairs = orbit_pairs(entries, degrees, tolerance=1e-10)
    bounded = (pairs.means == 0).all(0)
    assert 0 < bounded.sum() < 16 and not bounded.diagonal().any()
    k = torch.tensor(powers, dtype=torch.float64)
    for i, j in bounded.nonzero().tolist():
        exact = dense_grid.log_orbit_density(
            entries.values[j], entries.locs[i], entries.scales[i], k
        )
        assert exact <= pairs.log_densities[i, j] < pairs.log_densities[j, j] - 30


@pytest.mark.parametrize("powers", POWERS)
def test_smallest_divergences_are_minima_over_scales(powers):
    degrees = Degrees.of(powers)
    _, locs, scales = units(powers)
    _, image_locs, image_scales = units(powers, seed=1)
    t = torch.linspace(-6, 6, 24_001).unsqueeze(-1)
    k = torch.tensor(powers)
    factors = (k * t).exp()
    result = smallest_divergences(locs, scales, image_locs, image_scales, degrees)
    for i in range(4):
        for j in range(4):
            distance = (factors * image_locs[j] - locs[i]) / scales[i]
            spread = factors * image_scales[j] / scales[i]
            terms = distance.square() + spread.square() - 1 - 2 * k * t
            assert_close(result[i, j], terms.sum(-1).min(), rtol=1e-5, atol=1e-5)


def test_degrees_split_and_join_in_any_order():
    entries = torch.arange(6.0)
    degrees = Degrees.of((0, 1, -1, 1, 0, -1))
    incoming, outgoing, fixed = degrees.split(entries)
    assert incoming.tolist() == [1, 3]
    assert outgoing.tolist() == [2, 5]
    assert fixed.tolist() == [0, 4]
    assert_close(degrees.join(incoming, outgoing, fixed), entries)
    assert degrees.jacobian == 0


def test_rescaling_keeps_products_of_ends():
    degrees = Degrees.of((1, 1, -1))
    unit = torch.tensor([[2.0, -3.0, 5.0]])
    moved = degrees.rescale(unit, torch.tensor([math.log(4)]))
    assert_close(moved, torch.tensor([[8.0, -12.0, 1.25]]))


def test_balance_finds_one_representative_of_an_orbit():
    degrees = Degrees.of((1, 1, 0, -1))
    unit = torch.randn(4).expand(5, 4)
    moved = degrees.rescale(unit, torch.linspace(-9, 9, 5))
    here, there = (degrees.rescale(each, degrees.balance(each)) for each in (unit, moved))
    assert_close(here, there)
    assert_close(here[:, :2].norm(dim=-1), here[:, 3].abs())
    assert degrees.balance(torch.tensor([[1.0, 1.0, 1.0, 0.0]])) == 0


@pytest.mark.parametrize(("powers", "reason"), [((1, 2, -1), "degree 2"), ((0, 0), "nothing")])
def test_degrees_without_integrals_are_refused(powers, reason):
    with pytest.raises(ValueError, match=reason):
        Degrees.of(powers)


def test_units_without_incoming_entries_are_refused_where_nothing_bounds_them():
    entries = UnitEntries(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="diverges"):
        log_orbit_mass(entries, Degrees.of((1, -1)))
