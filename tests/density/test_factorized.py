"""The trace density of the symmetrized guide is log q^G, exactly where the estimator is exact."""

import itertools
import math

import pyro
import pytest
import torch
from densities import draw, flatten_batch, mean_and_error, redraw, traced_log_ratio
from marks import on_each
from problems import PROBLEMS, brute_force_log_q_symmetrized, one_hidden_layer, two_hidden_layers
from pyro import poutine
from pyro.distributions import Normal, constraints
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch.distributions import biject_to

import pyro_perm as pp
from pyro_perm.density.base_guides import read_density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.symmetry.separable import coupled_sites


@on_each(PROBLEMS)
def test_exact_trace_density_is_the_brute_force_average(problem):
    guide, trace, density = draw(problem)
    log_q_symmetrized = brute_force_log_q_symmetrized(
        guide.symmetry, density.locs, density.scales, density.values
    )
    log_q = sum(
        Normal(density.locs[s], density.scales[s]).log_prob(density.values[s]).sum()
        for s in density.values
    )
    ratio = traced_log_ratio(trace)
    torch.testing.assert_close(ratio, log_q_symmetrized - log_q, rtol=0, atol=1e-8)
    others = [
        node["log_prob_sum"]
        for name, node in _with_log_probs(trace).nodes.items()
        if node["type"] == "sample" and not _belongs_to(name, guide.symmetry.sites)
    ]
    jacobians = sum(trace.nodes[s]["log_prob_sum"] for s in guide.symmetry.sites)
    total = trace.log_prob_sum() - sum(others) - jacobians
    torch.testing.assert_close(total, log_q_symmetrized, rtol=0, atol=1e-8)


def _with_log_probs(trace):
    trace.compute_log_prob()
    return trace


def _belongs_to(name, sites):
    return name.startswith("log_ratio_symmetrized") or name.removesuffix("_unconstrained") in sites


@on_each(PROBLEMS)
@pytest.mark.parametrize("estimator", [pp.Exact(), pp.Bethe()], ids=["Exact", "Bethe"])
def test_particles_have_the_density_that_each_has_alone(problem, estimator):
    _, _, density = draw(problem, num_particles=3)
    together = estimator.log_ratio(density)
    assert together.shape == (3,)
    for particle in range(3):
        values = {site: value[particle] for site, value in density.values.items()}
        alone = FactorizedDensity(
            density.symmetry, values, density.locs, density.scales, torch.Size()
        )
        torch.testing.assert_close(estimator.log_ratio(alone), together[particle])


@on_each(PROBLEMS)
def test_log_ratio_of_permutations_is_the_change_of_the_density(problem):
    guide, _, density = draw(problem)
    g = guide.symmetry.sample((5,))
    moved = guide.symmetry.apply(g, density.values)

    def log_q(values):
        total = 0.0
        for site, value in values.items():
            log_prob = Normal(density.locs[site], density.scales[site]).log_prob(value)
            total = total + log_prob.sum(tuple(range(-guide.symmetry.site_rank(site), 0)))
        return total

    expected = log_q(moved) - log_q(density.values)
    torch.testing.assert_close(density.log_ratio(g), expected)


def gap_to_exact(density, estimator):
    """Mean of an estimate of I(g; w) minus the exact one, and its standard error."""
    return mean_and_error(pp.Exact().log_ratio(density) - estimator.log_ratio(density))


@on_each(PROBLEMS)
def test_uniform_estimators_bracket_exact(problem):
    _, _, density = draw(problem, num_particles=400)
    info_nce, error = gap_to_exact(density, pp.InfoNCE(8))
    assert info_nce <= 4 * error
    leave_one_out, error = gap_to_exact(density, pp.LeaveOneOut(8))
    assert leave_one_out >= -4 * error


@pytest.mark.slow
@on_each(PROBLEMS)
def test_uniform_estimators_meet_exact(problem):
    _, _, density = draw(problem, num_particles=100)
    for estimator in (pp.InfoNCE(3000), pp.LeaveOneOut(3000)):
        mean, error = gap_to_exact(density, estimator)
        assert abs(mean) <= 0.05 + 4 * error


@on_each(PROBLEMS)
def test_chain_rule_bounds_exact_from_below(problem):
    _, _, density = draw(problem, num_particles=400)
    difference = pp.Bethe().log_ratio(density) - pp.Exact().log_ratio(density)
    error = difference.std().item() / 400**0.5
    assert difference.mean().item() >= -4 * error - 1e-9
    if len(density.symmetry.spec) == 1 and not coupled_sites(density.symmetry):
        torch.testing.assert_close(difference, torch.zeros(400), rtol=0, atol=1e-8)


@pytest.mark.parametrize("estimator", [pp.Exact(), pp.Bethe(), pp.InfoNCE(4)], ids=str)
def test_gradient_matches_finite_differences(estimator):
    problem = one_hidden_layer(3)
    _, _, density = draw(problem)
    leaves = [
        density.values["w1"].detach(),
        density.locs["w1"].detach(),
        density.scales["w1"].detach(),
    ]

    def log_ratio(value, loc, scale):
        torch.manual_seed(0)
        changed = FactorizedDensity(
            density.symmetry,
            density.values | {"w1": value},
            density.locs | {"w1": loc},
            density.scales | {"w1": scale},
            torch.Size(),
        )
        return estimator.log_ratio(changed)

    assert torch.autograd.gradcheck(log_ratio, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("num_particles", [None, 3])
@on_each(p for p in PROBLEMS if not p.is_coupled)
def test_envelope_gradient_is_the_gradient_through_the_exact_sum(problem, num_particles):
    _, _, density = draw(problem, num_particles)
    kinds = [
        {site: tensor.detach().requires_grad_() for site, tensor in kind.items()}
        for kind in (density.values, density.locs, density.scales)
    ]
    density = FactorizedDensity(density.symmetry, *kinds, density.batch_shape)
    leaves = [tensor for kind in kinds for tensor in kind.values()]
    found, expected = (
        torch.autograd.grad(estimator.log_ratio(density).square().sum(), leaves)
        for estimator in (pp.Bethe(), pp.Exact())
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_exact_refuses_large_groups_and_names_them():
    _, _, density = draw(two_hidden_layers(8, 3))
    assert torch.isfinite(pp.Exact().log_ratio(density))
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"40320 elements of the groups .*second.*Bethe"):
        draw(two_hidden_layers(8, 8))


def test_single_precision_agrees_with_double_at_small_scales():
    _, _, density = draw(one_hidden_layer(6))
    double = {site: 1e-3 * scale for site, scale in density.scales.items()}
    single = FactorizedDensity(
        density.symmetry,
        {site: density.locs[site].float() for site in density.locs},
        {site: loc.float() for site, loc in density.locs.items()},
        {site: scale.float() for site, scale in double.items()},
        torch.Size(),
    )
    exact = FactorizedDensity(density.symmetry, density.locs, density.locs, double, torch.Size())
    torch.testing.assert_close(
        pp.Exact().log_ratio(single).double(), pp.Exact().log_ratio(exact), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("estimator", [pp.InfoNCE, pp.LeaveOneOut])
@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_estimators_refuse_bad_counts(estimator, number):
    with pytest.raises(ValueError, match="num_permutations must be a positive int"):
        estimator(number)


def mixture():
    """A Gaussian mixture whose weights are one of the sites that its labels permute."""
    weights = pyro.sample("weights", pyro.distributions.Dirichlet(torch.full((3,), 2.0)))
    loc = pyro.sample("loc", Normal(0.0, 2.0).expand([3]).to_event(1))
    components = Normal(loc, 0.5)
    likelihood = pyro.distributions.MixtureSameFamily(
        pyro.distributions.Categorical(weights), components
    )
    with pyro.plate("data", 6):
        pyro.sample("x", likelihood, obs=torch.linspace(-2.0, 2.0, 6))


def draw_of_mixture(num_particles):
    """Its guide, the density of some draws, and log q of the draw moved by every permutation."""
    init = init_to_value(
        values={"weights": torch.tensor([0.2, 0.3, 0.5]), "loc": torch.tensor([-0.5, 0.1, 0.6])}
    )
    guide = pp.AutoSymmetrized(AutoNormal(mixture, init_loc_fn=init, init_scale=0.5))
    guide()
    with poutine.trace() as tracer, pyro.plate("particles", num_particles, dim=-2):
        guide.base()
    nodes = tracer.trace.nodes
    density = flatten_batch(read_density(nodes, guide.symmetry.group))
    on_simplex = pyro.distributions.TransformedDistribution(
        nodes["weights_unconstrained"]["fn"].base_dist, biject_to(constraints.simplex)
    )
    log_q = [
        on_simplex.log_prob(nodes["weights"]["value"][..., list(g)])
        + nodes["loc_unconstrained"]["fn"].log_prob(nodes["loc"]["value"][..., list(g)])
        for g in itertools.permutations(range(3))
    ]
    return guide, density, torch.stack(log_q).squeeze(-1)


def test_fresh_draws_are_distributed_like_the_guide():
    _, density, _ = draw_of_mixture(5)
    fresh = redraw(density, 4000)
    assert fresh.batch_shape == (4000,)
    for site, value in fresh.values.items():
        assert value.shape[1:] == density.values[site].shape[1:]
        if site == "weights":
            torch.testing.assert_close(value.sum(-1), torch.ones(4000))
            value = biject_to(constraints.simplex).inv(value)
        z = (value - density.locs[site]) / density.scales[site]
        torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), rtol=0, atol=0.07)
        torch.testing.assert_close(z.std(0), torch.ones_like(z[0]), rtol=0, atol=0.05)


def test_weights_on_a_simplex_are_permuted_with_their_volume():
    guide, density, log_q = draw_of_mixture(5)
    assert guide.symmetry.spec["P0"].keys() == {"weights", "loc"}
    expected = log_q.logsumexp(0) - math.log(6) - log_q[0]
    torch.testing.assert_close(pp.Exact().log_ratio(density), expected, rtol=0, atol=1e-9)
    sampled = pp.ImportanceSampled(num_permutations=4000).log_ratio(density)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=0.1)


def test_the_training_default_leaves_a_simplex_out():
    _, density, log_q = draw_of_mixture(400)
    loc_only = [
        Normal(density.locs["loc"], density.scales["loc"]).log_prob(moved).sum(-1)
        for g in itertools.permutations(range(3))
        for moved in [density.values["loc"][..., list(g)]]
    ]
    loc_only = torch.stack(loc_only)
    bethe = pp.Bethe().log_ratio(density)
    torch.testing.assert_close(bethe, loc_only.logsumexp(0) - math.log(6) - loc_only[0])
    exact = log_q.logsumexp(0) - math.log(6) - log_q[0]
    assert -bethe.mean() < -exact.mean()  # I(g; loc) < I(g; loc, weights)
