"""Signs, scales and units that stay in their places, against sums and integrals by brute force."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples, slow
from problems import one_hidden_layer, with_signs
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.symmetry import Axis, Element
from pyro_perm.symmetry.actions.orbits import Units
from pyro_perm.symmetry.actions.permute import center
from pyro_perm.symmetry.actions.scale import Scale
from pyro_perm.symmetry.unit_layout import UnitLayout
from pyro_perm.trace_sites import element_site
from pyro_perm.uniform_permutation import uniform_parts

laws = settings(derandomize=True, deadline=None, max_examples=examples(30))
SEEDS = st.integers(0, 2**32 - 1)

# Incoming weights, a bias, outgoing weights and a scale of their own that stays: of two units.
RECTIFIERS, ABSOLUTE = (
    {
        "units": {
            "w": Axis(0, scale=1, sign=sign),
            "b": Axis(0, scale=1, sign=sign),
            "v": Axis(1, scale=-1),
            "tau": 0,
        }
    }
    for sign in (False, True)
)
SHAPES = {"w": (3, 2), "b": (3,), "v": (1, 3), "tau": (3,)}
SPECS = pytest.mark.parametrize("spec", [RECTIFIERS, ABSOLUTE], ids=["scales", "signs and scales"])


def random_values(*batch):
    return {site: torch.randn(*batch, *shape) for site, shape in SHAPES.items()}


def assert_close(first, second):
    assert first.keys() == second.keys()
    for site, value in first.items():
        torch.testing.assert_close(value, second[site], rtol=1e-9, atol=1e-12)


@SPECS
@given(seed=SEEDS)
@laws
def test_scales_multiply_and_keep_what_the_network_computes(spec, seed):
    torch.manual_seed(seed)
    symmetry, w = pp.PermutationSymmetry(spec, shapes=SHAPES), random_values()
    f, g = symmetry.sample((4,)), symmetry.sample()
    compose, inverse, apply = symmetry.compose, symmetry.inverse, symmetry.apply
    assert_close(apply(compose(f, g), w), apply(f, apply(g, w)))
    assert_close(apply(compose(g, f), w), apply(g, apply(f, w)))
    assert_close(apply(inverse(g), apply(g, w)), w)
    assert_close(apply(compose(g, inverse(g)), w), w)
    x, activation = torch.randn(5, 2), torch.abs if spec is ABSOLUTE else torch.relu

    def network(w):
        return activation(x @ w["w"].mT + w["b"].unsqueeze(-2)) @ w["v"].mT

    torch.testing.assert_close(network(apply(g, w)), network(w))
    log_scales = g["units"].parts[Scale()]
    assert log_scales.abs().max() <= math.log(4)
    unit = g["units"].permutation[0].item()
    source, sign = (~unit, -1) if unit < 0 else (unit, 1)
    expected = sign * log_scales[0].exp() * w["w"][source]
    torch.testing.assert_close(apply(g, w)["w"][0], expected)
    torch.testing.assert_close(apply(g, w)["tau"][0], w["tau"][source])


@SPECS
def test_a_bare_permutation_rescales_nothing(spec):
    symmetry, w = pp.PermutationSymmetry(spec, shapes=SHAPES), random_values()
    g = torch.tensor([2, 0, 1])
    moved = symmetry.apply({"units": g}, w)
    assert torch.equal(moved["w"], w["w"][g]) and torch.equal(moved["v"], w["v"][:, g])
    both = symmetry.compose({"units": g}, {"units": Element(g, {Scale(): torch.ones(3)})})
    expected = symmetry.apply({"units": Element(g, {Scale(): torch.ones(3)})}, w)
    assert_close(symmetry.apply(both, w), symmetry.apply({"units": g}, expected))


def units_of(spec, seed=0):
    """Units of which some have negative weights, so that orbits may have two modes."""
    generator = torch.Generator().manual_seed(seed)
    layout = UnitLayout.of(pp.PermutationSymmetry(spec, shapes=SHAPES).group, "units", (*SHAPES,))
    locs = torch.randn(3, layout.width, generator=generator)
    scales = 0.3 + torch.rand(3, layout.width, generator=generator)
    values = locs + scales * torch.randn(3, layout.width, generator=generator)
    return layout, Units(*(kind.requires_grad_() for kind in (values, locs, scales)))


def log_densities_of_images(spec, units):
    """``log q_i(h w_j) |dh|`` on a fine grid of scales, signs first: shape ``(h, n, n)``."""
    degrees = torch.tensor([1.0, 1, 1, -1, 0])
    flips = torch.tensor([-1.0, -1, -1, 1, 1])
    t = torch.linspace(-10, 10, 1501)
    images = units.values * (t[:, None, None] * degrees).exp()
    jacobian = t * degrees.sum()
    if spec is ABSOLUTE:
        images, jacobian = torch.cat([images, images * flips]), jacobian.repeat(2)
    normal = dist.Normal(units.locs.unsqueeze(-2), units.scales.unsqueeze(-2))
    log_densities = torch.stack([normal.log_prob(image).sum(-1) for image in images])
    return log_densities + (jacobian + (t[1] - t[0]).log())[:, None, None]


@SPECS
@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
def test_unit_pairs_are_integrals_over_scales(spec, seed):
    layout, units = units_of(spec, seed)
    pairs = layout.orbits.pairs(center(units, layout.orbits))
    expected = log_densities_of_images(spec, units).logsumexp(0)
    difference = pairs.log_densities - expected
    # Up to a constant for each factor.
    torch.testing.assert_close(difference, difference[:, :1].expand(3, 3), rtol=0, atol=1e-4)
    weights = torch.randn(3, 3)
    weights = weights - weights.mean(-1, keepdim=True)
    by_hand = torch.autograd.grad((weights * expected).sum(), units)
    by_graph = torch.autograd.grad((weights * pairs.log_densities).sum(), units)
    in_closed_form = pairs.gradients(weights)
    for one, other, third in zip(by_hand, in_closed_form, by_graph, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(third, other)


@SPECS
def test_the_mass_of_an_orbit_is_its_integral(spec):
    layout, units = units_of(spec)
    own = dist.Normal(units.locs, units.scales).log_prob(units.values).sum(-1)
    expected = log_densities_of_images(spec, units).logsumexp(0).diagonal() - own
    found = layout.orbits.log_mass(center(units, layout.orbits))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@SPECS
def test_units_are_as_near_as_their_nearest_images(spec):
    layout, units = units_of(spec)
    locs, scales = units.locs.detach(), units.scales.detach()
    found = layout.orbits.divergences(locs, scales, locs, scales)
    degrees, flips = torch.tensor([1.0, 1, 1, -1, 0]), torch.tensor([-1.0, -1, -1, 1, 1])
    nearest = torch.full((3, 3), torch.inf)
    for t, sign in itertools.product(torch.linspace(-3, 3, 601), (1, -1)):
        if sign == 1 or spec is ABSOLUTE:
            factor = (t * degrees).exp()
            images = locs * factor * (flips if sign < 0 else 1.0)
            image = dist.Normal(images, scales * factor)
            fixed = dist.Normal(locs.unsqueeze(-2), scales.unsqueeze(-2))
            twice_kl = 2 * torch.distributions.kl_divergence(image, fixed).sum(-1)
            logs = (scales.unsqueeze(-2) / scales).log().sum(-1)
            nearest = torch.minimum(nearest, twice_kl - 2 * logs)
    assert (found <= nearest + 1e-6).all()
    torch.testing.assert_close(found, nearest, rtol=1e-3, atol=1e-3)


@SPECS
def test_densities_of_orbits_take_priors(spec):
    group = pp.PermutationSymmetry(spec, shapes=SHAPES).group
    kinds = [{s: torch.ones(shape) for s, shape in SHAPES.items()} for _ in range(3)]
    density = FactorizedDensity(group, *kinds, torch.Size())
    for estimator in (
        pp.Bethe(),
        pp.Exact(),
        pp.InfoNCE(3),
        pp.LeaveOneOut(3),
        pp.SampledChainRule(3),
        pp.ImportanceSampled(3),
        pp.AnnealedImportanceSampled(3),
    ):
        with pytest.raises(ValueError, match="'units'"):
            estimator.log_ratio(density)


STAY = {"units": {"w": Axis(0, sign=True, permute=False), "v": Axis(1, sign=True, permute=False)}}
STAY_SHAPES = {"w": (3, 2), "v": (2, 3)}


def staying_units(num=()):
    kinds = {}, {}, {}
    torch.manual_seed(0)
    for site, shape in STAY_SHAPES.items():
        loc, scale = 0.6 * torch.randn(shape), 0.5 + torch.rand(shape)
        tensors = loc + scale * torch.randn(*num, *shape), loc, scale
        for kind, tensor in zip(kinds, tensors, strict=True):
            kind[site] = tensor.requires_grad_()
    group = pp.PermutationSymmetry(STAY, shapes=STAY_SHAPES).group
    return FactorizedDensity(group, *kinds, torch.Size(num))


def test_units_that_stay_are_summed_over_their_signs_alone():
    density = staying_units()

    def log_q(signs):
        flipped = {"w": signs[:, None] * density.values["w"], "v": signs * density.values["v"]}
        return sum(
            dist.Normal(density.locs[s], density.scales[s]).log_prob(value).sum()
            for s, value in flipped.items()
        )

    terms = [log_q(torch.tensor(signs)) for signs in itertools.product((1.0, -1.0), repeat=3)]
    expected = torch.stack(terms).logsumexp(0) - math.log(8) - terms[0]
    assert density.symmetry.log_order == pytest.approx(math.log(8))
    leaves = [*density.values.values(), *density.locs.values(), *density.scales.values()]
    by_hand = torch.autograd.grad(expected, leaves, retain_graph=True)
    for estimator in (pp.Exact(), pp.Bethe(), pp.InfoNCE(4), pp.SampledChainRule(4)):
        found = estimator.log_ratio(density)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        for one, other in zip(torch.autograd.grad(found, leaves), by_hand, strict=True):
            torch.testing.assert_close(one, other)


def test_exact_knows_no_limit_for_units_that_stay():
    spec = {"units": {"w": Axis(0, sign=True, permute=False)}}
    group = pp.PermutationSymmetry(spec, shapes={"w": (300,)}).group
    kinds = [{"w": tensor} for tensor in (torch.randn(300), torch.randn(300), torch.ones(300))]
    density = FactorizedDensity(group, *kinds, torch.Size())
    torch.testing.assert_close(pp.Exact().log_ratio(density), pp.Bethe().log_ratio(density))


def flipping(permute=False):
    problem = with_signs(one_hidden_layer(3))
    spec = {
        group: {
            site: Axis(axis.dim, sign=axis.sign, permute=permute)
            for site, axis in pp.PermutationSymmetry({group: sites}).spec[group].items()
            for axis in axis
        }
        for group, sites in problem.spec.items()
    }
    return problem, pp.PermutationSymmetry(spec)


def test_a_guide_whose_units_stay():
    problem, symmetry = flipping()
    guide = pp.AutoSymmetrized(problem.base(), symmetry)
    svi = SVI(problem.model, guide, Adam({"lr": 0.02}), pp.TraceSymmetrized_ELBO())
    assert all(math.isfinite(svi.step(*problem.args)) for _ in range(3))
    site = element_site(guide.symmetry.group, "hidden")
    drawn = torch.stack(
        [poutine.trace(guide).get_trace(*problem.args).nodes[site]["value"] for _ in range(20)]
    )
    units = torch.where(drawn < 0, ~drawn, drawn)
    assert (units == torch.arange(3)).all() and (drawn < 0).any() and (drawn >= 0).any()
    found = pp.mutual_information(guide, *problem.args, num_samples=8, progress=False)
    assert found.log_order == pytest.approx(3 * math.log(2))
    assert 0 <= found.lower <= found.log_order
    overlap = pp.unit_overlap(guide, *problem.args, num_samples=2)["hidden"]
    assert torch.equal(overlap, torch.eye(3))


def test_summary_and_json_tell_what_happens_to_units():
    _, symmetry = flipping()
    symmetry = pp.PermutationSymmetry(symmetry.spec, shapes={"w1": [3, 2], "b1": [3], "w2": [1, 3]})
    lines = symmetry.summary().splitlines()
    assert lines[1].startswith("hidden     3        2.1  units stay in place: ±w1[0], ")
    assert pp.PermutationSymmetry.from_json(symmetry.to_json()) == symmetry
    scaled = pp.PermutationSymmetry(ABSOLUTE, shapes=SHAPES)
    assert scaled.summary().splitlines() == [
        "group  size  log order  axes (± flips sign, c^k rescales)",
        "units     3        3.9  c ±w[0], c ±b[0], c^-1 v[1], tau[0]",
        "log |G| = 3.9 nats, 3 scales",
    ]
    assert scaled.log_order == math.inf and scaled.log_orders == {"units": math.inf}
    assert pp.PermutationSymmetry.from_json(scaled.to_json()) == scaled


def test_elements_that_move_units_that_stay_are_refused():
    symmetry = pp.PermutationSymmetry(STAY, shapes=STAY_SHAPES)
    w = {"w": torch.randn(3, 2)}
    moved = symmetry.apply({"units": torch.tensor([0, ~1, 2])}, w)["w"]
    assert torch.equal(moved, w["w"] * torch.tensor([[1.0], [-1.0], [1.0]]))
    with pytest.raises(ValueError, match=r"group 'units' leaves its units in place"):
        symmetry.apply({"units": torch.tensor([1, 0, 2])}, w)
    with pytest.raises(ValueError, match="group 'units' does nothing to its units"):
        pp.PermutationSymmetry({"units": {"w": Axis(0, permute=False)}})


def test_draws_of_units_that_stay_are_aligned_by_their_signs():
    symmetry = pp.PermutationSymmetry(STAY, shapes=STAY_SHAPES)
    reference = {site: torch.randn(shape) for site, shape in STAY_SHAPES.items()}
    moved = symmetry.apply(symmetry.sample((10,)), reference)
    for target in (reference, None):
        aligned = pp.align(moved, symmetry, target)
        units = aligned.permutations["units"]
        assert (torch.where(units < 0, ~units, units) == torch.arange(3)).all()
        for site, value in aligned.samples.items():
            expected = value[:1] if target is None else target[site]
            torch.testing.assert_close(value, expected.expand_as(value))


@pytest.mark.parametrize("spec", [RECTIFIERS, STAY], ids=["scales", "stay"])
def test_elements_are_drawn_where_they_are_wanted(spec):
    shapes = SHAPES if spec is RECTIFIERS else STAY_SHAPES
    symmetry = pp.PermutationSymmetry(spec, shapes=shapes)
    (factor,) = symmetry.group.factors
    elsewhere = torch.device("meta")
    for name, distribution in uniform_parts(factor, elsewhere).items():
        assert distribution.expand((4,)).sample().shape == (4, 3), name
        assert distribution.expand((4,)).sample().device == elsewhere
        here = uniform_parts(factor)[name].sample((5,))
        assert uniform_parts(factor)[name].support.check(here).all()
        assert not distribution.log_prob(here).any()


def test_what_the_library_drew_is_applied_without_waiting_for_a_device(monkeypatch):
    symmetry = pp.PermutationSymmetry(ABSOLUTE, shapes=SHAPES)
    g, w = symmetry.sample((2,)), random_values(2)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "item", None)
        patch.setattr(torch.Tensor, "__bool__", None)
        moved = symmetry.group.apply(g, w)
    assert_close(moved, symmetry.apply(g, w))
    with pytest.raises(ValueError, match="group 'units': the entries of a permutation lie between"):
        symmetry.apply({"units": torch.tensor([0, 1, 3])}, w)


def test_coordinates_of_long_axes_are_counted_not_listed(monkeypatch):
    def listed(*args, **kwargs):
        raise AssertionError("torch.tensor takes milliseconds for thousands of coordinates")

    monkeypatch.setattr(torch, "tensor", listed)
    value = torch.arange(8000.0)
    for axis in (Axis(0, inner=4), Axis(0, outer=2, index=range(0, 8000, 2))):
        units = torch.randperm(axis.size(8000))
        moved = axis.resolve((8000,), 1).take(value, units, 1)
        assert moved.sort().values.equal(value)
