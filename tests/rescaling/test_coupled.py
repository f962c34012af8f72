import math

import pytest
import torch
from marks import slow
from torch.testing import assert_close

from pyro_perm.rescaling import (
    CoupledExponent,
    Coupling,
    Degrees,
    Layer,
    UnitEntries,
    coupled_log_mass,
    find_coupled_mode,
    log_orbit_mass,
    sampled_coupled_log_mass,
)


def drawn(*shape, loc, scale, batch=(), generator):
    """Entries of a guide, and values drawn from it."""
    locs = loc * torch.randn(shape, generator=generator)
    scales = scale * torch.rand(shape, generator=generator).add(0.5)
    noise = torch.randn(*batch, *shape, generator=generator)
    return UnitEntries(locs + scales * noise, locs.expand(*batch, *shape), scales.expand_as(noise))


def network(sizes, *, loc=1.0, scale=0.3, batch=(), seed=0):
    """Layers of a network with biases, from its inputs to its outputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs, *hidden, outputs = sizes
    settings = {"loc": loc, "scale": scale, "batch": batch, "generator": generator}
    layers = []
    for k, size in enumerate(hidden):
        incoming = drawn(size, inputs + 1 if k == 0 else 1, **settings)
        outgoing = drawn(size, outputs if k == len(hidden) - 1 else 0, **settings)
        layers.append(Layer(incoming, outgoing))
    couplings = [
        Coupling(k, k - 1, drawn(hidden[k], hidden[k - 1], 1, **settings))
        for k in range(1, len(hidden))
    ]
    return layers, couplings


def under_prior(layers, couplings):
    """The same values under a standard Normal prior."""

    def prior(entries):
        return UnitEntries(
            entries.values, torch.zeros_like(entries.locs), torch.ones_like(entries.scales)
        )

    return (
        [Layer(prior(layer.incoming), prior(layer.outgoing)) for layer in layers],
        [coupling._replace(entries=prior(coupling.entries)) for coupling in couplings],
    )


def moved(layers, couplings, log_scales):
    """The same network with rescaled units."""

    def scaled(entries, factor):
        return entries._replace(values=entries.values * factor)

    factors = [t.exp().unsqueeze(-1) for t in log_scales]
    new_layers = [
        Layer(scaled(layer.incoming, c), scaled(layer.outgoing, 1 / c))
        for layer, c in zip(layers, factors, strict=True)
    ]
    new_couplings = [
        coupling._replace(
            entries=scaled(
                coupling.entries,
                (factors[coupling.rows] / factors[coupling.columns].mT).unsqueeze(-1),
            )
        )
        for coupling in couplings
    ]
    return new_layers, new_couplings


def on_a_grid(exponent):
    """``log int exp(H(t) - H(0)) dt`` for two units."""
    t = torch.linspace(-6, 6, 1201)
    points = torch.cartesian_prod(t, t)
    heights = exponent.value(points)
    here = exponent.value(torch.zeros(2))
    return heights.logsumexp(0) + 2 * (t[1] - t[0]).log() - here


CASES = [
    network((3, 1, 1, 1)),
    network((3, 1, 1, 1), loc=0.3, scale=1.0),
    under_prior(*network((3, 1, 1, 1))),
    under_prior(*network((10, 1, 1, 1), loc=0.1)),
]


@pytest.mark.parametrize("case", [CASES[0], *slow(*((case,) for case in CASES[1:]))])
def test_laplace_is_close_to_a_grid(case):
    """Two units with few entries, the second integrand skewed: this is as bad as it gets."""
    exponent = CoupledExponent.of(*case)
    assert_close(coupled_log_mass(exponent), on_a_grid(exponent), rtol=0, atol=0.25)


@pytest.mark.parametrize("case", [CASES[0], *slow(*((case,) for case in CASES[1:]))])
def test_importance_sampling_agrees_with_a_grid(case):
    exponent = CoupledExponent.of(*case)
    expected = on_a_grid(exponent)
    for bound in sampled_coupled_log_mass(exponent, 50_000):
        assert_close(bound, expected, rtol=0, atol=0.02)


def test_laplace_is_exact_where_the_integrand_is_gaussian():
    """Very many entries, or very sharp factors."""
    layers, couplings = network((2, 1, 1, 1), scale=1e-3)
    exponent = CoupledExponent.of(layers, couplings)
    lower, _ = sampled_coupled_log_mass(exponent, 200_000)
    assert_close(coupled_log_mass(exponent), lower, rtol=0, atol=2e-2)


def test_one_layer_is_the_sum_over_its_units():
    layers, couplings = network((6, 5, 2), seed=2)
    exponent = CoupledExponent.of(layers, couplings)
    (layer,) = layers
    entries = UnitEntries(*(torch.cat(kinds, -1) for kinds in zip(*layer, strict=True)))
    exact = log_orbit_mass(entries, Degrees.of((1,) * 7 + (-1,) * 2)).sum()
    assert_close(coupled_log_mass(exponent), exact, rtol=0, atol=0.1)
    for bound in sampled_coupled_log_mass(exponent, 20_000):
        assert_close(bound, exact, rtol=0, atol=0.05)


def test_gradient_is_that_of_finite_differences():
    exponent = CoupledExponent.of(*network((2, 2, 2, 1), loc=0.7, scale=0.5))

    def mass(A, B, alpha, beta):
        return coupled_log_mass(
            CoupledExponent(A, B, exponent.C, exponent.D, alpha, beta, exponent.a)
        )

    inputs = [
        x.clone().requires_grad_() for x in (exponent.A, exponent.B, exponent.alpha, exponent.beta)
    ]
    assert torch.autograd.gradcheck(mass, inputs)


@pytest.mark.parametrize("guide", [True, False])
def test_mode_is_a_function_of_the_orbit(guide):
    """Wherever on its orbit a network lies, its mode is the same network."""
    case = network((4, 5, 3, 2), loc=0.5, scale=0.5, seed=1)
    case = case if guide else under_prior(*case)
    log_scales = [2 * torch.randn(5), 2 * torch.randn(3)]
    here = find_coupled_mode(CoupledExponent.of(*case))
    there = find_coupled_mode(CoupledExponent.of(*moved(*case, log_scales)))
    assert_close(there + torch.cat(log_scales), here, rtol=0, atol=1e-5)


def test_far_from_balance_the_integral_is_the_same():
    case = network((4, 5, 3, 2), seed=1)
    log_scales = [torch.full((5,), 8.0), torch.full((3,), -8.0)]
    here = CoupledExponent.of(*case)
    there = CoupledExponent.of(*moved(*case, log_scales))
    zero, shift = torch.zeros(8), torch.cat(log_scales)
    masses = [coupled_log_mass(each) + each.value(zero) for each in (here, there)]
    assert_close(masses[1] + (here.a * shift).sum(), masses[0], rtol=0, atol=1e-4)


def test_batches_are_many_networks():
    layers, couplings = network((3, 2, 2, 1), batch=(4,))
    together = coupled_log_mass(CoupledExponent.of(layers, couplings))
    assert together.shape == (4,)

    def one(entries, k):
        return UnitEntries(*(kind[k] for kind in entries))

    for k in range(4):
        alone = CoupledExponent.of(
            [Layer(one(layer.incoming, k), one(layer.outgoing, k)) for layer in layers],
            [coupling._replace(entries=one(coupling.entries, k)) for coupling in couplings],
        )
        assert_close(together[k], coupled_log_mass(alone), rtol=0, atol=1e-8)


@pytest.mark.slow
def test_few_draws_give_bounds_on_average():
    """The upper one for weights drawn from the guide only, with their own place among the draws."""
    exponent = CoupledExponent.of(*network((1, 1, 1, 1), loc=0.5, scale=0.6, batch=(4000,)))
    exact, _ = sampled_coupled_log_mass(exponent, 500)
    lower, upper = sampled_coupled_log_mass(exponent, 1)
    error = max(lower.std(), upper.std()) / math.sqrt(4000)
    assert lower.mean() < exact.mean() + 2 * error
    assert upper.mean() > exact.mean() - 2 * error
    assert (upper - lower).mean() > 0


def test_what_does_not_fit_or_has_no_mode_is_refused():
    layers, couplings = network((3, 2, 4, 1))
    with pytest.raises(ValueError, match="do not lie between"):
        CoupledExponent.of(layers, [couplings[0]._replace(rows=0, columns=1)])
    zero = UnitEntries(*(torch.zeros_like(kind) for kind in layers[0].incoming))
    empty = [Layer(zero._replace(scales=zero.scales + 1), layers[0].outgoing), layers[1]]
    with pytest.raises(ValueError, match="no mode"):
        coupled_log_mass(CoupledExponent.of(empty, []))
