"""Estimators, guides and certificates over groups that flip the signs of their units."""

import itertools
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import draw, traced_log_ratio
from marks import on_each
from problems import (
    SIGNED_PROBLEMS,
    hierarchical,
    one_hidden_layer,
    recurrent,
    two_hidden_layers,
    with_signs,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators._screening import Screen
from pyro_perm.symmetry.unit_layout import UnitLayout
from pyro_perm.trace_sites import element_site

SIGNED = on_each(SIGNED_PROBLEMS)


def all_elements(symmetry):
    """Every element of the group, group -> shape ``(order, n)``."""
    tables = []
    for group, size in symmetry.groups.items():
        signs = [(1, -1) if group in symmetry.acting_groups else (1,)] * size
        elements = itertools.product(itertools.permutations(range(size)), itertools.product(*signs))
        tables.append(
            [[j if s > 0 else -1 - j for j, s in zip(p, by, strict=True)] for p, by in elements]
        )
    products = list(itertools.product(*tables))
    return {
        group: torch.tensor([element[k] for element in products])
        for k, group in enumerate(symmetry.groups)
    }


def log_q(density, values):
    return sum(
        dist.Normal(density.locs[s], density.scales[s])
        .log_prob(value)
        .flatten(value.dim() - density.symmetry.site_rank(s))
        .sum(-1)
        for s, value in values.items()
    )


@SIGNED
def test_the_group_has_the_order_that_it_says(problem):
    _, _, density = draw(problem)
    elements = all_elements(density.symmetry)
    order = len(next(iter(elements.values())))
    assert density.symmetry.log_order == pytest.approx(math.log(order))


@SIGNED
def test_exact_is_the_average_over_the_whole_group(problem):
    _, trace, density = draw(problem)
    moved = density.symmetry.apply(all_elements(density.symmetry), density.values)
    terms = log_q(density, moved)
    expected = terms.logsumexp(0) - math.log(len(terms)) - log_q(density, density.values)
    ratio = traced_log_ratio(trace)
    torch.testing.assert_close(ratio, expected, rtol=0, atol=1e-8)
    found = density.log_ratio(all_elements(density.symmetry))
    torch.testing.assert_close(found, terms - log_q(density, density.values))


@SIGNED
def test_the_models_log_joint_is_invariant(problem):
    guide, _, _ = draw(problem)
    drawn = guide.base(*problem.args)
    values = {site: drawn[site] for site in guide.symmetry.sites}
    for _ in range(5):
        moved = guide.symmetry.apply(guide.symmetry.sample(), values)
        joints = []
        for each in (values, moved):
            pyro.set_rng_seed(0)
            conditioned = poutine.condition(problem.model, data=each)
            joints.append(poutine.trace(conditioned).get_trace(*problem.args).log_prob_sum())
        torch.testing.assert_close(*joints)


@SIGNED
def test_bounds_are_on_their_sides_of_exact(problem):
    _, _, density = draw(problem, num_particles=100)
    exact = -pp.Exact().log_ratio(density)
    assert (exact <= density.symmetry.log_order).all()
    chain_rule = pp.SampledChainRule(4).bounds(density)
    below = [-pp.InfoNCE(8).log_ratio(density), -pp.Bethe().log_ratio(density), chain_rule.lower]
    above = [-pp.LeaveOneOut(8).log_ratio(density)]
    if problem.name != "signed_recurrent":
        above.append(chain_rule.upper)
    for gap in [exact - bound for bound in below] + [bound - exact for bound in above]:
        assert gap.mean().item() >= -4 * gap.std().item() / 10 - 1e-9


@pytest.mark.parametrize("uniform", [pp.InfoNCE(1000), pp.LeaveOneOut(1000)], ids=str)
def test_uniform_estimators_meet_exact(uniform):
    _, _, density = draw(with_signs(one_hidden_layer(3)), num_particles=50)
    gap = uniform.log_ratio(density) - pp.Exact().log_ratio(density)
    assert abs(gap.mean().item()) <= 0.02 + 4 * gap.std().item() / 50**0.5


@on_each(p for p in SIGNED_PROBLEMS if not p.is_coupled)
def test_bethe_is_exact_for_one_group(problem):
    _, _, density = draw(problem, num_particles=5)
    torch.testing.assert_close(
        pp.Bethe().log_ratio(density), pp.Exact().log_ratio(density), rtol=0, atol=1e-7
    )


def signed_layer(n, entries, spread, flipped, seed=0):
    """Units of which some entries flip, near to each other's negatives, and a draw of them."""
    generator = torch.Generator().manual_seed(seed)
    spec = {"units": {"w": pp.Axis(0, sign=True), "v": 0}}
    shapes = {"w": (n, flipped), "v": (n, entries - flipped)}
    symmetry = pp.PermutationSymmetry(spec, shapes=shapes)
    kinds = [{}, {}, {}]
    for site, shape in shapes.items():
        locs = spread * torch.randn(shape, generator=generator)
        scales = 0.5 + torch.rand(shape, generator=generator)
        values = locs + scales * torch.randn(shape, generator=generator)
        for kind, tensor in zip(kinds, (values, locs, scales), strict=True):
            kind[site] = tensor.requires_grad_()
    return FactorizedDensity(symmetry.group, *kinds, torch.Size())


def all_gradients(estimator, density):
    leaves = [
        kind[site] for kind in (density.values, density.locs, density.scales) for site in kind
    ]
    return torch.autograd.grad(estimator.log_ratio(density), leaves)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_small_layers_are_exact_in_value_and_gradient(n, spread):
    density = signed_layer(n, 4, spread, flipped=3)
    bethe, exact = pp.Bethe(), pp.Exact()
    torch.testing.assert_close(
        bethe.log_ratio(density), exact.log_ratio(density), rtol=0, atol=1e-7
    )
    for one, other in zip(
        all_gradients(bethe, density), all_gradients(exact, density), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", [pp.Exact(), pp.InfoNCE(4), pp.LeaveOneOut(4)], ids=str)
def test_gradients_are_those_of_finite_differences(estimator):
    density = signed_layer(3, 3, 0.5, flipped=2)
    kinds = (density.values, density.locs, density.scales)

    def log_ratio(*tensors):
        torch.manual_seed(0)
        changed = [kind | {"w": w} for kind, w in zip(kinds, tensors, strict=True)]
        return estimator.log_ratio(FactorizedDensity(density.symmetry, *changed, torch.Size()))

    assert torch.autograd.gradcheck(log_ratio, [kind["w"] for kind in kinds])


def test_units_at_zero_gain_nothing_from_their_signs():
    density = signed_layer(5, 4, 0.0, flipped=4)
    plain = pp.PermutationSymmetry({"units": {"w": 0, "v": 0}}, shapes={"w": (5, 4), "v": (5, 0)})
    unsigned = replace(density, symmetry=plain.group)
    for estimator in (pp.Exact(), pp.Bethe()):
        torch.testing.assert_close(estimator.log_ratio(density), estimator.log_ratio(unsigned))


def test_units_far_from_zero_gain_log_two_each():
    density = signed_layer(5, 40, 5.0, flipped=40)
    information = -pp.Bethe().log_ratio(density).item()
    assert information == pytest.approx(density.symmetry.log_order)
    assert density.symmetry.log_order == pytest.approx(math.log(120 * 32))


def test_screening_sees_units_that_overlap_with_negatives(monkeypatch):
    density = signed_layer(300, 40, 6.0, flipped=30)
    with torch.no_grad():
        for kind in (density.values, density.locs, density.scales):
            kind["w"][1::2] = kind["w"][::2] * (1 if kind is density.scales else -1)
            kind["v"][1::2] = kind["v"][::2]
    screen = Screen(UnitLayout.of(density.symmetry, "units", ("w", "v")).orbits)
    units = density.units("units", ["w", "v"])
    (clusters,) = screen.clusters([units.locs], [units.scales])
    assert clusters.tolist() == [[i, i + 1] for i in range(0, 300, 2)]
    screened, screened_grads = pp.Bethe().log_ratio(density), all_gradients(pp.Bethe(), density)
    monkeypatch.setattr("pyro_perm.estimators._screening._WORTHWHILE", math.inf)
    whole, whole_grads = pp.Bethe().log_ratio(density), all_gradients(pp.Bethe(), density)
    torch.testing.assert_close(screened, whole, rtol=0, atol=1e-5)
    # Every pair of a unit and its negative is one of two: log 2 less than the whole order.
    expected = density.symmetry.log_order - 150 * math.log(2)
    assert -whole.item() == pytest.approx(expected, abs=1e-3)
    for one, other in zip(screened_grads, whole_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_an_estimator_keeps_screens_with_and_without_signs_apart():
    signed = signed_layer(300, 40, 6.0, flipped=40)
    with torch.no_grad():
        for kind in (signed.values, signed.locs):
            kind["w"][1] = -kind["w"][0]
        signed.scales["w"][1] = signed.scales["w"][0]
    plain = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (300, 40)})
    bethe = pp.Bethe()
    bethe.log_ratio(replace(signed, symmetry=plain.group))
    torch.testing.assert_close(bethe.log_ratio(signed), pp.Bethe().log_ratio(signed))
    assert bethe.log_ratio(signed) > -signed.symmetry.log_order + 0.5


def test_info_nce_may_exceed_log_k_by_the_signs():
    density = signed_layer(5, 40, 5.0, flipped=40)
    assert -pp.InfoNCE(1).log_ratio(density).item() == pytest.approx(5 * math.log(2))


@SIGNED
def test_the_guide_draws_signs_and_trains(problem):
    guide = problem.guide()
    svi = SVI(problem.model, guide, Adam({"lr": 0.02}), Trace_ELBO())
    assert all(math.isfinite(svi.step(*problem.args)) for _ in range(3))
    drawn = [poutine.trace(guide).get_trace(*problem.args) for _ in range(12)]
    for group in guide.symmetry.groups:
        site = element_site(guide.symmetry.group, group)
        elements = torch.stack([trace.nodes[site]["value"] for trace in drawn])
        assert (elements < 0).any() == (group in guide.symmetry.signed_groups)


@pytest.mark.slow
def test_closed_form_and_sampled_kl_agree():
    problem = with_signs(hierarchical(3), plain=("tau",))
    guide = problem.guide(pp.Exact())
    guide(*problem.args)
    with torch.no_grad():
        sampled, closed = (
            torch.tensor([loss.loss(problem.model, guide, *problem.args) for _ in range(100)])
            for loss in (Trace_ELBO(), pp.TraceSymmetrized_ELBO())
        )
    error = math.hypot(sampled.std(), closed.std()) / 10
    assert abs(sampled.mean() - closed.mean()) < 4 * error


def test_certificates_name_the_chain_rule():
    problem = with_signs(two_hidden_layers(6, 6, torch.tanh))
    guide = problem.guide()
    found = pp.mutual_information(guide, *problem.args, num_samples=8, progress=False)
    assert 0 < found.lower <= found.upper < found.log_order
    assert found.lower_method == found.upper_method == "chain rule"
    assert found.log_order == pytest.approx(2 * math.log(720 * 64))
    elbo = pp.symmetrized_elbo(problem.model, guide, *problem.args, num_samples=8, progress=False)
    assert elbo.base < elbo.lower <= elbo.upper


def test_small_groups_are_certified_exactly():
    problem = with_signs(one_hidden_layer(3))
    found = pp.mutual_information(problem.guide(), *problem.args, num_samples=8, progress=False)
    assert found.lower_method == "exact" and found.lower == found.upper


@pytest.mark.parametrize("estimator", [pp.ImportanceSampled(4), pp.AnnealedImportanceSampled(4)])
def test_estimators_that_draw_no_signs_say_so(estimator):
    problem = with_signs(recurrent())
    with pytest.raises(ValueError, match=r"group 'state' flips .* SampledChainRule"):
        pp.mutual_information(
            problem.guide(), *problem.args, num_samples=4, estimator=estimator, progress=False
        )


def test_only_real_sites_flip():
    def model():
        # Invariant under the flip, but on an interval.
        w = pyro.sample("w", dist.Uniform(-torch.ones(3), torch.ones(3)).to_event(1))
        pyro.factor("f", w.square().sum())

    symmetry = pp.PermutationSymmetry({"g": {"w": pp.Axis(0, sign=True)}})
    with pytest.raises(TypeError, match=r"group 'g', site 'w': its support is .* whole real line"):
        pp.AutoSymmetrized(AutoNormal(model), symmetry)()


@pytest.mark.slow
def test_arviz_gets_the_signed_density():
    problem = with_signs(one_hidden_layer(3))
    guide = problem.guide(pp.Exact())
    data = pp.to_arviz(problem.model, guide, *problem.args, num_samples=3, progress=False)
    assert torch.as_tensor(data.sample_stats["log_q"].values).isfinite().all()
