"""Base guides that draw all sites as one vector: the density of a trace is log q^G there too."""

import itertools
import math
from dataclasses import fields, replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import traced_log_ratio
from problems import Problem, one_hidden_layer, two_hidden_layers
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.density.base_guides import read_density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators._coupled_groups import marginals_at
from pyro_perm.posterior.bounds.certificate import certify
from pyro_perm.posterior.bounds.draws import Draw
from pyro_perm.program.call import Call
from pyro_perm.sampling import draw_density

JOINT = [AutoMultivariateNormal, AutoLowRankMultivariateNormal]


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def random_base(kind, problem):
    """A guide with random parameters, whose units overlap."""
    base = kind(problem.model, init_loc_fn=pp.init_to_fan_in, init_scale=0.8)
    base(*problem.args)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            noise = 0.2 * torch.randn_like(parameter)
            parameter.copy_(noise.tril(-1) if "scale_tril" in name else parameter + noise)
    return base


def symmetrized(base, problem, estimator=None):
    """A symmetrized guide; by default with a cheap estimator that serves any base."""
    estimator = estimator or pp.InfoNCE(2)
    return pp.AutoSymmetrized(base, problem.symmetry(), estimator=estimator)


def draw(guide, problem):
    """A trace, and the vector that was drawn."""
    trace = poutine.trace(guide).get_trace(*problem.args)
    latent = next(name for name in trace.nodes if name.endswith("_latent"))
    return trace, trace.nodes[latent]["value"]


def brute_force(base, vector, symmetry):
    """``log 1/|G| sum_g q(g . w)``, from the guide's own way to cut the vector into sites."""
    values = {site["name"]: value for site, value in base._unpack_latent(vector)}
    posterior = base.get_posterior()
    terms = []
    tables = [list(itertools.permutations(range(n))) for n in symmetry.groups.values()]
    for element in itertools.product(*tables):
        permutations = dict(zip(symmetry.groups, map(torch.tensor, element), strict=True))
        moved = values | symmetry.apply(permutations, {s: values[s] for s in symmetry.sites})
        packed = torch.cat([moved[name].flatten() for name in values])
        terms.append(posterior.log_prob(packed))
    return torch.stack(terms).logsumexp(0) - math.log(len(terms))


@pytest.mark.parametrize("problem", [one_hidden_layer(), two_hidden_layers(2, 3)], ids=str)
@pytest.mark.parametrize("kind", [*JOINT, AutoDiagonalNormal])
def test_traces_have_the_brute_force_density(kind, problem):
    base = random_base(kind, problem)
    guide = symmetrized(base, problem, pp.Exact())
    trace, vector = draw(guide, problem)
    expected = brute_force(base, vector, guide.symmetry)
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", JOINT)
def test_gradients_are_those_of_brute_force(kind):
    problem = one_hidden_layer()
    base = random_base(kind, problem)
    guide = symmetrized(base, problem, pp.Exact())
    trace, vector = draw(guide, problem)
    parameters = list(base.parameters())
    found = torch.autograd.grad(trace.log_prob_sum(), parameters, retain_graph=True)
    expected = brute_force(base, vector, guide.symmetry)
    for mine, true in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, true, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", JOINT)
@pytest.mark.parametrize("problem", [one_hidden_layer(), two_hidden_layers(2, 3)], ids=str)
def test_importance_sampling_bounds_the_exact_information(kind, problem):
    guide = symmetrized(random_base(kind, problem), problem)
    guide(*problem.args)
    with torch.no_grad(), poutine.trace() as tracer, pyro.plate("particles", 200, dim=-2):
        guide.base(*problem.args)
    density = read_density(tracer.trace.nodes, guide.symmetry.group)
    exact = -pp.Exact().log_ratio(density)
    bounds = pp.ImportanceSampled(16).bounds(density)
    for gaps in (exact - bounds.lower, bounds.upper - exact):
        error = gaps.std() / gaps.numel() ** 0.5
        assert -4 * error <= gaps.mean() < 0.5 * guide.symmetry.log_order
    assert 0.1 < exact.mean() < guide.symmetry.log_order - 0.01


@pytest.mark.parametrize("kind", JOINT)
def test_at_permuted_values_there_are_the_marginals_alone(kind):
    """A joint density that was moved without its vector would weigh another draw."""
    problem = one_hidden_layer()
    guide = symmetrized(random_base(kind, problem), problem)
    guide(*problem.args)
    density = draw_density(Call(guide, problem.args), guide.symmetry.group)
    elements = density.symmetry.sample((3,))
    found = marginals_at(density, elements)
    assert type(found) is FactorizedDensity and found.batch_shape == (3,)
    sites = density.symmetry.sites
    expected = density.unit_pairs("hidden", sites)[:, elements["hidden"]].movedim(1, 0)
    torch.testing.assert_close(found.unit_pairs("hidden", sites), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOINT)
def test_certificates_contain_what_is_too_much_for_exact(kind):
    problem = one_hidden_layer(8)
    guide = symmetrized(random_base(kind, problem), problem)
    guide(*problem.args)
    call = Call(guide, problem.args)
    with torch.no_grad():
        densities = [draw_density(call, guide.symmetry.group) for _ in range(12)]
        certificate = certify(map(Draw, densities).__next__, len(densities))
        everything = {"hidden": torch.tensor(list(itertools.permutations(range(8))))}
        exact = guide.symmetry.log_order - torch.stack(
            [density.log_ratio(everything).logsumexp(0) for density in densities]
        )
    assert certificate.lower_method == "importance sampling"
    for gaps in (exact - certificate.lower, certificate.upper - exact):
        assert gaps.mean() >= -4 * gaps.std() / len(gaps) ** 0.5


def test_base_guides_are_evaluated_with_a_symmetry_given():
    problem = one_hidden_layer()
    base = random_base(AutoMultivariateNormal, problem)
    guide = symmetrized(base, problem)
    evaluate = partial(pp.symmetrized_elbo, problem.model, num_samples=30, progress=False)
    pyro.set_rng_seed(1)
    alone = evaluate(base, *problem.args, symmetry=problem.symmetry())
    wrapped = evaluate(guide, *problem.args)
    error = math.hypot(alone.lower_standard_error, wrapped.lower_standard_error)
    assert abs(alone.lower - wrapped.lower) < 4 * error


def test_an_uncorrelated_joint_gaussian_is_a_factorized_one():
    problem = one_hidden_layer()
    base = random_base(AutoDiagonalNormal, problem)
    joint = AutoMultivariateNormal(problem.model, init_loc_fn=pp.init_to_fan_in)
    joint(*problem.args)
    with torch.no_grad():
        joint.loc.copy_(base.loc)
        joint.scale = base.scale.detach()
    ratios = []
    for guide in (base, joint):
        pyro.set_rng_seed(1)
        trace, _ = draw(symmetrized(guide, problem, pp.Exact()), problem)
        ratios.append(traced_log_ratio(trace))
    torch.testing.assert_close(*ratios)


@pytest.mark.parametrize("kind", [*JOINT, AutoDiagonalNormal])
def test_particles_have_the_density_that_each_has_alone(kind):
    problem = one_hidden_layer()
    base = random_base(kind, problem)
    symmetry = problem.symmetry()
    symmetry.verify(problem.model, *problem.args)
    with poutine.trace() as tracer, pyro.plate("particles", 3, dim=-2):
        base(*problem.args)
    together = read_density(tracer.trace.nodes, symmetry.group)
    assert together.batch_shape == (3, 1)
    found = pp.Exact().log_ratio(together)
    for particle in range(3):
        alone = replace(
            together,
            values={site: value[particle, 0] for site, value in together.values.items()},
            batch_shape=torch.Size(),
        )
        if not alone.factorizes:
            alone = replace(alone, vector=together.vector[particle, 0])
        torch.testing.assert_close(found[particle, 0], pp.Exact().log_ratio(alone))


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Trace_ELBO, pp.TraceSymmetrized_ELBO])
@pytest.mark.parametrize("vectorized", [False, True])
def test_training_lowers_the_loss(loss, vectorized):
    problem = one_hidden_layer()
    base = AutoMultivariateNormal(problem.model, init_loc_fn=pp.init_to_fan_in)
    guide = symmetrized(base, problem, pp.ImportanceSampled(4))
    particles = loss(num_particles=2, vectorize_particles=vectorized, max_plate_nesting=1)
    svi = SVI(problem.model, guide, Adam({"lr": 0.05}), particles)
    losses = [svi.step(*problem.args) for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.slow
def test_laplace_approximations_are_joint_gaussians():
    problem = one_hidden_layer()
    mode = AutoLaplaceApproximation(problem.model, init_loc_fn=pp.init_to_fan_in)
    svi = SVI(problem.model, mode, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(300):
        svi.step(*problem.args)
    guide = symmetrized(mode.laplace_approximation(*problem.args), problem)
    found = pp.mutual_information(guide, *problem.args, num_samples=8, progress=False)
    assert found.lower_method == "exact"
    assert 0 < found.lower <= guide.symmetry.log_order + 1e-9


@pytest.mark.parametrize(
    "estimator", [pp.Bethe(), pp.SampledChainRule(4), pp.AnnealedImportanceSampled(4)]
)
def test_estimators_by_permanents_are_refused(estimator):
    problem = one_hidden_layer()
    guide = symmetrized(AutoMultivariateNormal(problem.model), problem)
    guide(*problem.args)
    with poutine.trace() as tracer:
        guide(*problem.args)
    density = read_density(tracer.trace.nodes, guide.symmetry.group)
    name = type(estimator).__name__
    with pytest.raises(TypeError, match=rf"{name}\(.* jointly: give estimator=ImportanceSampled"):
        estimator.log_ratio(density)


def test_overlap_of_units_is_refused():
    problem = one_hidden_layer()
    with pytest.raises(TypeError, match="no unit has a factor of its own"):
        pp.unit_overlap(symmetrized(AutoMultivariateNormal(problem.model), problem), *problem.args)


def test_a_symmetry_drawn_by_several_guides_is_refused():
    problem = one_hidden_layer()
    parts = AutoGuideList(problem.model)
    parts.append(AutoNormal(poutine.block(problem.model, expose=["w2"])))
    rest = poutine.block(problem.model, hide=["w2"])
    parts.append(AutoMultivariateNormal(rest, init_loc_fn=pp.init_to_fan_in))
    with pytest.raises(TypeError, match=r"'w1', .* jointly, but not with site 'w2'"):
        symmetrized(parts, problem)(*problem.args)


def test_signs_are_refused():
    axes = {"w1": pp.Axis(0, sign=True), "b1": pp.Axis(0, sign=True), "w2": pp.Axis(1, sign=True)}
    problem = replace(one_hidden_layer(), spec={"hidden": axes})
    guide = symmetrized(AutoMultivariateNormal(problem.model), problem)
    with pytest.raises(TypeError, match=r"group 'hidden' flips the signs .* independent sites"):
        guide(*problem.args)


def scales_model():
    with pyro.plate("units", 3):
        scale = pyro.sample("scale", dist.Exponential(1.0))
    pyro.sample("y", dist.Normal(scale.sum(-1), 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize("kind", [AutoMultivariateNormal, AutoDiagonalNormal])
def test_constrained_sites_are_refused(kind):
    problem = Problem("scales", scales_model, (), {"units": {"scale": -1}})
    with pytest.raises(TypeError, match="site 'scale' is a function of its part of the vector"):
        symmetrized(kind(scales_model), problem)()


def test_a_joint_density_is_no_factorized_one():
    problem = one_hidden_layer()
    guide = symmetrized(random_base(AutoMultivariateNormal, problem), problem)
    trace, _ = draw(guide, problem)
    density = read_density(trace.nodes, guide.symmetry.group)
    assert isinstance(density, pp.Density) and not isinstance(density, FactorizedDensity)
    with pytest.raises(TypeError, match="abstract"):
        pp.Density(**{field.name: getattr(density, field.name) for field in fields(pp.Density)})
