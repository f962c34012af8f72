"""The training default: its value, its gradient, and the pairs of units that it leaves out."""

import copy
import math
import pickle

import pyro
import pytest
import torch
from densities import traced_log_ratio
from problems import one_hidden_layer, two_hidden_layers
from pyro import poutine

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators._screening import Screen
from pyro_perm.estimators._terms import lower_terms, upper_terms
from pyro_perm.symmetry.actions.permute import SingleImages


def layer(n, entries, spread, scale=1.0, dtype=torch.float64, num=(), seed=0):
    """A density over one group of n units, their locs ``spread`` scales apart, and a draw of it."""
    generator = torch.Generator().manual_seed(seed)
    symmetry = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (n, entries)})
    locs = scale * spread * torch.randn(n, entries, generator=generator, dtype=torch.float64)
    scales = scale * (0.5 + torch.rand(n, entries, generator=generator, dtype=torch.float64))
    noise = torch.randn(*num, n, entries, generator=generator, dtype=torch.float64)
    tensors = (locs + scales * noise, locs, scales)
    values, locs, scales = ({"w": tensor.to(dtype).requires_grad_()} for tensor in tensors)
    return FactorizedDensity(symmetry.group, values, locs, scales, torch.Size(num))


def gradients(estimator, density):
    leaves = [kind["w"] for kind in (density.values, density.locs, density.scales)]
    log_ratio = estimator.log_ratio(density).sum()
    return torch.autograd.grad(log_ratio, leaves, allow_unused=True)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_small_layers_are_exact_in_value_and_gradient(n, spread):
    density = layer(n, 2, spread)
    torch.testing.assert_close(
        pp.Bethe().log_ratio(density), pp.Exact().log_ratio(density), rtol=0, atol=1e-7
    )
    for bethe, exact in zip(
        gradients(pp.Bethe(), density), gradients(pp.Exact(), density), strict=True
    ):
        bethe = torch.zeros_like(exact) if bethe is None else bethe
        torch.testing.assert_close(bethe, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.2, 0.4, 0.8, 1.2, 2.4])
def test_large_blocks_are_right_but_for_a_few_tenths(spread):
    density = layer(14, 5, spread, num=(60,))
    error = pp.Bethe().log_ratio(density) - pp.Exact().log_ratio(density)
    assert abs(error.mean().item()) < 0.2  # Up to 1.73 without the correction.
    assert error.abs().max() < 1.5


@pytest.mark.parametrize("spread", [0.2, 0.4, 0.8])
def test_gradient_on_large_blocks_is_nearly_exact(spread):
    density = layer(14, 5, spread, num=(60,))
    for bethe, exact in zip(
        gradients(pp.Bethe(), density)[1:], gradients(pp.Exact(), density)[1:], strict=True
    ):
        assert torch.cosine_similarity(bethe.flatten(), exact.flatten(), 0) > 0.95


def test_gradient_on_large_blocks_is_that_of_the_bethe_permanent(monkeypatch):
    """Without its correction, which is nearly constant."""
    monkeypatch.setattr("pyro_perm.permanent.blocks.log_bethe_bias", lambda marginals: 0.0)
    density = layer(16, 3, 0.4)
    found = gradients(pp.Bethe(), density)
    step = 1e-5
    for kind, grad in zip((density.values, density.locs, density.scales), found, strict=True):
        direction = torch.randn_like(grad)
        ends = []
        for sign in (1, -1):
            moved = {"w": kind["w"] + sign * step * direction}
            kinds = [moved if k is kind else k for k in _kinds(density)]
            ends.append(pp.Bethe().log_ratio(_density(density, *kinds)))
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-4, atol=1e-4)


def _kinds(density):
    return density.values, density.locs, density.scales


def _density(like, values, locs, scales):
    return FactorizedDensity(like.symmetry, values, locs, scales, like.batch_shape)


@pytest.mark.parametrize("density", [layer(5, 2, 0.5, num=(3,)), layer(300, 40, 0.5, num=(3,))])
def test_draws_that_share_their_parameters_keep_their_values_and_add_their_gradients(density):
    values, together = pp.Bethe().log_ratio(density), gradients(pp.Bethe(), density)[1]
    apart = torch.zeros_like(together)
    for value, draw in zip(values, density.values["w"], strict=True):
        alone = FactorizedDensity(
            density.symmetry, {"w": draw}, density.locs, density.scales, torch.Size()
        )
        torch.testing.assert_close(value, pp.Bethe().log_ratio(alone))
        apart += torch.autograd.grad(pp.Bethe().log_ratio(alone), density.locs["w"])[0]
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("n", [2, 3, 40])
def test_identical_units_give_no_information(n):
    symmetry = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (n, 2)})
    locs, scales = {"w": torch.zeros(n, 2)}, {"w": torch.ones(n, 2)}
    values = {"w": torch.randn(n, 2)}
    density = FactorizedDensity(symmetry.group, values, locs, scales, torch.Size())
    information = -pp.Bethe().log_ratio(density).item()
    assert abs(information) <= 1e-6


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_does_not_depend_on_the_unit_of_measurement(scale, dtype):
    reference = pp.Bethe().log_ratio(layer(20, 4, 0.7, 1.0, dtype))
    scaled = pp.Bethe().log_ratio(layer(20, 4, 0.7, scale, dtype))
    torch.testing.assert_close(scaled, reference, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_five_thousand_units_apart_are_fully_informative():
    density = layer(5000, 30, 50.0, dtype=torch.float32)
    information = -pp.Bethe().log_ratio(density).item()
    assert information == pytest.approx(math.lgamma(5001))
    assert all(grad is None for grad in gradients(pp.Bethe(), density))


@pytest.mark.parametrize("num", [(), (3,)])
@pytest.mark.parametrize("clumps", [0, 1, 40])
def test_screening_changes_nothing_that_matters(clumps, num, monkeypatch):
    """Wide layers with coinciding, overlapping and separate units, with and without screening."""
    density = layer(300, 40, 6.0, num=num)
    with torch.no_grad():
        for first in range(clumps):
            near = slice(5 * first, 5 * first + 5)
            for kind in (density.locs, density.scales):
                kind["w"][near] = kind["w"][near.start] + 0.02 * torch.randn(5, 40)
            density.scales["w"].abs_()
            noise = torch.randn(*num, 5, 40)
            moved = density.locs["w"][near] + density.scales["w"][near] * noise
            density.values["w"][..., near, :] = moved
    screened, screened_grads = pp.Bethe().log_ratio(density), gradients(pp.Bethe(), density)
    monkeypatch.setattr("pyro_perm.estimators._screening._WORTHWHILE", math.inf)
    whole, whole_grads = pp.Bethe().log_ratio(density), gradients(pp.Bethe(), density)
    assert screened.shape == num
    assert (whole > -density.symmetry.log_order + 1).all() == (clumps > 0)
    torch.testing.assert_close(screened, whole, rtol=0, atol=1e-5)
    for one, other in zip(screened_grads, whole_grads, strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_screen_is_refreshed_before_units_meet():
    locs = 100.0 * torch.arange(400.0).unsqueeze(-1).expand(400, 20).contiguous()
    scales = torch.ones(400, 20)
    screen = Screen(SingleImages())
    assert screen.clusters([locs], [scales]) == []
    assert screen.clusters([locs + 1e-3], [scales]) == []
    moving = locs.clone()
    for _ in range(40):
        moving[1] -= 2.5
        clusters = screen.clusters([moving], [scales])
        near = (moving[0] - moving[1]).norm() < 10
        assert [c.tolist() for c in clusters] == [[[0, 1]]] or not near
    assert near


def test_screen_does_not_mistake_another_layer_for_its_own():
    screen, scales = Screen(SingleImages()), torch.ones(400, 20)
    apart = 100.0 * torch.arange(400.0).unsqueeze(-1).expand(400, 20).contiguous()
    assert screen.clusters([apart], [scales]) == []
    (together,) = screen.clusters([torch.zeros(400, 20)], [scales])
    assert together.shape == (1, 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entries", [30, 40, 60])
def test_one_estimator_serves_layers_of_several_shapes_and_precisions(entries, dtype):
    """Two guides may share an estimator, and every network's first group is ``P0``."""
    estimator = pp.Bethe()
    estimator.log_ratio(layer(300, 40, 0.5))
    other = layer(300, entries, 0.5, dtype=dtype)
    torch.testing.assert_close(estimator.log_ratio(other), pp.Bethe().log_ratio(other))


@pytest.fixture
def refreshed(monkeypatch):
    """The screens that compared all pairs of units anew, one entry each time."""
    screens, refresh = [], Screen._refresh

    def note(screen, *args):
        screens.append(screen)
        refresh(screen, *args)

    monkeypatch.setattr(Screen, "_refresh", note)
    return screens


def wide_guide(estimator=None):
    pyro.settings.set(module_local_params=True)  # Each guide has units of its own.
    problem = one_hidden_layer(600)
    guide = problem.guide(estimator, init_scale=1e-3)
    guide(*problem.args)
    return guide, lambda each: poutine.trace(each).get_trace(*problem.args)


def test_guides_that_share_an_estimator_remember_their_own_units(refreshed):
    estimator = pp.Bethe()
    guides = [wide_guide(estimator) for _ in range(2)]
    for _ in range(3):
        for guide, density in guides:
            density(guide)
            assert guide.estimator == estimator
    assert len(refreshed) == len(set(map(id, refreshed))) == 2


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
def test_copied_and_pickled_guides_remember_their_units(refreshed, clone):
    guide, density = wide_guide()
    expected = traced_log_ratio(density(guide))
    copied = clone(guide)
    pyro.clear_param_store()
    found = traced_log_ratio(density(copied))
    assert len(refreshed) == 1
    torch.testing.assert_close(found, expected)


def test_losses_that_share_an_estimator_remember_their_own_units(refreshed):
    estimator, problem = pp.Bethe(), one_hidden_layer(600)
    base = problem.base(init_scale=1e-3)
    losses = [
        pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry(), estimator=estimator) for _ in range(2)
    ]
    for _ in range(3):
        for loss in losses:
            loss.loss(problem.model, base, *problem.args)
    assert len(refreshed) == len(set(map(id, refreshed))) == 2


def test_chain_rule_gives_every_shared_site_to_one_group():
    symmetry = two_hidden_layers(3, 4).symmetry()
    symmetry.verify(two_hidden_layers(3, 4).model, *two_hidden_layers(3, 4).args)
    attached = [site for term in lower_terms(symmetry.group) for site in term.sites]
    assert sorted(attached) == ["b1", "b2", "w1", "w2", "w3"]
    assert [set(term.sites) for term in upper_terms(symmetry.group)] == [
        {"w1", "b1", "w2"},
        {"w2", "b2", "w3"},
    ]


def test_unit_pairs_are_log_densities_up_to_a_constant():
    density = layer(4, 3, 0.5)
    normal = torch.distributions.Normal(
        density.locs["w"].unsqueeze(1), density.scales["w"].unsqueeze(1)
    )
    expected = normal.log_prob(density.values["w"].unsqueeze(0)).sum(-1)
    difference = density.unit_pairs("units", ["w"]) - expected
    torch.testing.assert_close(difference, torch.full_like(difference, difference[0, 0].item()))


def test_two_estimators_with_different_memories_are_equal():
    first, second = pp.Bethe(), pp.Bethe()
    first.log_ratio(layer(300, 40, 6.0))
    assert first == second
    assert repr(first) == "Bethe()"
