"""Base guides that are flows: the density at permuted values takes the inverse."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import traced_log_ratio
from problems import one_hidden_layer, two_hidden_layers
from pyro import poutine
from pyro.distributions.transforms import (
    affine_autoregressive,
    affine_coupling,
    batchnorm,
    block_autoregressive,
    iterated,
    planar,
    polynomial,
    radial,
    spline_coupling,
    sylvester,
)
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoNormalizingFlow
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.density.base_guides import read_density
from pyro_perm.density.flows import Flow
from pyro_perm.density.gaussians import as_normal

STABLE = partial(affine_autoregressive, hidden_dims=[40], stable=True)
FLOWS = {
    "AutoIAFNormal": partial(AutoIAFNormal, hidden_dim=[40]),
    "two of them": partial(AutoIAFNormal, hidden_dim=[40], num_transforms=2),
    "stable": lambda model: AutoNormalizingFlow(model, STABLE),
    "coupling": lambda model: AutoNormalizingFlow(
        model, partial(iterated, 2, affine_coupling, hidden_dims=[40])
    ),
    "splines": lambda model: AutoNormalizingFlow(
        model, partial(spline_coupling, hidden_dims=[40], bound=4.0)
    ),
}
WITHOUT_INVERSE = {
    "Planar": planar,
    "Radial": radial,
    "Sylvester": sylvester,
    "Polynomial": partial(polynomial, hidden_dims=[40]),
    "BlockAutoregressive": block_autoregressive,
    "BatchNorm": batchnorm,
}
flows = pytest.mark.parametrize("made", FLOWS)


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def random_flow(made, problem):
    """A flow with random parameters, whose units overlap."""
    base = FLOWS[made](problem.model)
    base(*problem.args)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return base


def symmetrized(base, problem, estimator):
    return pp.AutoSymmetrized(base, problem.symmetry(), estimator=estimator)


def log_q(base, values):
    """The log-density of a vector, with nothing remembered of how it was drawn."""
    packed = torch.cat([values[name].flatten() for name in values])
    log_det = 0.0
    for transform in reversed(base.get_posterior().transforms):
        before = transform.inv(packed.clone())
        log_det = log_det + transform.log_abs_det_jacobian(before, packed).sum()
        packed = before
    return dist.Normal(0.0, 1.0).log_prob(packed).sum() - log_det


def brute_force(base, vector, symmetry):
    """``log 1/|G| sum_g q(g . w)``."""
    values = {site["name"]: value for site, value in base._unpack_latent(vector)}
    tables = [list(itertools.permutations(range(n))) for n in symmetry.groups.values()]
    terms = []
    for element in itertools.product(*tables):
        permutations = dict(zip(symmetry.groups, map(torch.tensor, element), strict=True))
        moved = symmetry.apply(permutations, {s: values[s] for s in symmetry.sites})
        terms.append(log_q(base, values | moved))
    return torch.stack(terms).logsumexp(0) - math.log(len(terms))


def vector_in(trace):
    return next(node["value"] for name, node in trace.nodes.items() if name.endswith("_latent"))


@flows
@pytest.mark.parametrize("problem", [one_hidden_layer(), two_hidden_layers(2, 3)], ids=str)
def test_traces_have_the_brute_force_density(made, problem):
    base = random_flow(made, problem)
    guide = symmetrized(base, problem, pp.Exact())
    trace = poutine.trace(guide).get_trace(*problem.args)
    expected = brute_force(base, vector_in(trace), guide.symmetry)
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=0, atol=1e-7)
    assert abs(traced_log_ratio(trace)) > 1e-3


@pytest.mark.parametrize("made", ["AutoIAFNormal", "coupling"])
def test_gradients_are_those_of_brute_force(made):
    problem = one_hidden_layer()
    base = random_flow(made, problem)
    guide = symmetrized(base, problem, pp.Exact())
    trace = poutine.trace(guide).get_trace(*problem.args)
    parameters = list(base.parameters())
    found = torch.autograd.grad(trace.log_prob_sum(), parameters, retain_graph=True)
    expected = brute_force(base, vector_in(trace), guide.symmetry)
    for mine, true in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, true, rtol=0, atol=1e-7)


def particles_of(guide, problem, num):
    guide(*problem.args)
    with torch.no_grad(), poutine.trace() as tracer, pyro.plate("particles", num, dim=-2):
        guide.base(*problem.args)
    return read_density(tracer.trace.nodes, guide.symmetry.group)


@flows
def test_importance_sampling_bounds_the_exact_information(made):
    problem = one_hidden_layer()
    guide = symmetrized(random_flow(made, problem), problem, pp.InfoNCE(2))
    density = particles_of(guide, problem, 200)
    assert density.batch_shape == (200, 1)
    exact = -pp.Exact().log_ratio(density)
    bounds = pp.ImportanceSampled(16).bounds(density)
    for gaps in (exact - bounds.lower, bounds.upper - exact):
        error = gaps.std() / gaps.numel() ** 0.5
        assert -4 * error <= gaps.mean() < 0.5 * guide.symmetry.log_order
    assert 0 < exact.mean() < guide.symmetry.log_order


def test_a_proposal_depends_on_the_parameters_alone():
    problem = one_hidden_layer()
    guide = symmetrized(random_flow("AutoIAFNormal", problem), problem, pp.InfoNCE(2))
    first, second = (particles_of(guide, problem, 3) for _ in range(2))
    assert not torch.equal(first.vector, second.vector)
    for moments in ("locs", "scales"):
        for site, value in getattr(first, moments).items():
            assert torch.equal(value, getattr(second, moments)[site])


def test_moments_of_a_flow_that_does_next_to_nothing_are_those_of_its_base():
    base = dist.Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])).to_event(1)
    shift = dist.transforms.AffineTransform(1.0, 2.0)
    distribution = dist.TransformedDistribution(base, [shift])
    locs, scales = Flow.of(distribution, as_normal(base)).moments()
    expected = dist.Normal(torch.tensor([3.0, -3.0]), torch.tensor([1.0, 6.0]))
    assert ((locs - expected.loc).abs() < 4 * expected.scale / 8).all()
    torch.testing.assert_close(scales, expected.scale, rtol=0.35, atol=0)


@pytest.mark.parametrize("name", WITHOUT_INVERSE)
def test_flows_without_an_inverse_are_refused_by_name(name):
    problem = one_hidden_layer()
    base = AutoNormalizingFlow(problem.model, WITHOUT_INVERSE[name])
    message = rf"site 'w1' is drawn by a flow whose {name}\w* has no inverse.*AutoIAFNormal"
    with pytest.raises(TypeError, match=message):
        symmetrized(base, problem, pp.ImportanceSampled(4))(*problem.args)
    loss = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry(), estimator=pp.ImportanceSampled(4))
    with pytest.raises(TypeError, match=message):
        loss.loss(problem.model, base, *problem.args)


def test_estimators_by_permanents_are_refused():
    problem = one_hidden_layer()
    guide = symmetrized(random_flow("AutoIAFNormal", problem), problem, None)
    with pytest.raises(TypeError, match=r"Bethe\(.* jointly: give estimator=ImportanceSampled"):
        poutine.trace(guide).get_trace(*problem.args)


def test_certificates_and_draws_of_a_flow():
    problem = one_hidden_layer()
    base = random_flow("AutoIAFNormal", problem)
    guide = symmetrized(base, problem, pp.ImportanceSampled(8))
    evaluate = partial(pp.symmetrized_elbo, problem.model, num_samples=20, progress=False)
    wrapped = evaluate(guide, *problem.args)
    alone = evaluate(base, *problem.args, symmetry=problem.symmetry())
    assert 0 < wrapped.mutual_information.lower <= guide.symmetry.log_order
    error = math.hypot(alone.lower_standard_error, wrapped.lower_standard_error)
    assert abs(alone.lower - wrapped.lower) < 4 * error
    draws = guide.sample_posterior(3, *problem.args)
    assert draws.log_q.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Trace_ELBO, pp.TraceSymmetrized_ELBO])
@pytest.mark.parametrize("vectorized", [False, True])
def test_training_lowers_the_loss(loss, vectorized):
    problem = one_hidden_layer()
    guide = symmetrized(AutoIAFNormal(problem.model), problem, pp.ImportanceSampled(4))
    particles = loss(num_particles=2, vectorize_particles=vectorized, max_plate_nesting=1)
    svi = SVI(problem.model, guide, Adam({"lr": 0.03}), particles)
    losses = [svi.step(*problem.args) for _ in range(40)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
