"""Gradients of losses, and second derivatives, are those of log q^G summed over the group."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import (
    EnergyDistance,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.optim.multi import Newton

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity

SYMMETRY = {"units": {"w": 0}}
LOC = torch.tensor([-0.3, 0.1, 0.4], dtype=torch.float64)
SCALE = 0.4


def model():
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(w.tanh().sum(-1), 0.5), obs=torch.tensor(1.0))


def log_joint(w):
    likelihood = dist.Normal(w.tanh().sum(-1), 0.5).log_prob(torch.tensor(1.0))
    return dist.Normal(0.0, 1.0).log_prob(w).sum(-1) + likelihood


def log_q_symmetrized(w, loc, scale=SCALE):
    orders = itertools.permutations(range(w.shape[-1]))
    terms = [dist.Normal(loc, scale).log_prob(w[..., list(order)]).sum(-1) for order in orders]
    return torch.stack(terms).logsumexp(0) - math.lgamma(w.shape[-1] + 1)


def normal_guide(estimator=None):
    base = AutoNormal(model, init_loc_fn=init_to_value(values={"w": LOC.clone()}), init_scale=SCALE)
    symmetry = pp.PermutationSymmetry(SYMMETRY)
    guide = pp.AutoSymmetrized(base, symmetry, estimator=estimator or pp.Exact(), permute=False)
    guide()
    return guide


class Drawn(AutoGuide):
    """Draws the site itself, with or without a reparametrized sample."""

    def __init__(self, kind):
        super().__init__(model)
        self.kind = kind
        self.loc = torch.nn.Parameter(LOC.clone())

    def forward(self):
        if self.prototype_trace is None:
            self._setup_prototype()
        return {"w": pyro.sample("w", self.kind(self.loc, SCALE).to_event(1))}


def agrees(gradients, expected):
    """Whether two Monte Carlo estimates, one row a repetition, have the same mean."""
    difference = torch.stack(gradients) - torch.stack(expected)
    error = difference.std(0) / len(difference) ** 0.5
    # A t statistic with 15 degrees of freedom exceeds 6 once in 40,000 times.
    return bool((difference.mean(0).abs() < 6 * error + 1e-9).all()) and error.max() < 0.1


def gradient(loss, guide, parameter):
    parameter.grad = None
    loss.loss_and_grads(model, guide)
    return parameter.grad.clone()


def gradient_by_hand(num):
    loc = LOC.clone().requires_grad_()
    w = loc + SCALE * torch.randn(num, 3)
    (log_q_symmetrized(w, loc) - log_joint(w)).mean().backward()
    return loc.grad


@pytest.mark.parametrize("by_guide", [True, False], ids=["guide", "loss"])
@pytest.mark.parametrize("kind", [dist.Normal, NonreparameterizedNormal])
def test_sites_without_rsample_under_the_symmetrized_loss(kind, by_guide):
    particles = {"num_particles": 4000, "vectorize_particles": True, "max_plate_nesting": 0}
    base, symmetry = Drawn(kind), pp.PermutationSymmetry(SYMMETRY)
    if by_guide:
        guide = pp.AutoSymmetrized(base, symmetry, estimator=pp.Exact())
        loss = pp.TraceSymmetrized_ELBO(**particles)
    else:
        guide = base
        loss = pp.TraceSymmetrized_ELBO(symmetry=symmetry, estimator=pp.Exact(), **particles)
    found = [gradient(loss, guide, base.loc) for _ in range(16)]
    assert agrees(found, [gradient_by_hand(4000) for _ in range(16)])


LOSSES = [
    Trace_ELBO(),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
    TraceEnum_ELBO(strict_enumeration_warning=False),
    TraceTMC_ELBO(strict_enumeration_warning=False),
    TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=0),
    RenyiELBO(num_particles=2),
    ReweightedWakeSleep(max_plate_nesting=0),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_sites_without_rsample_are_refused_by_other_losses(loss):
    base = Drawn(NonreparameterizedNormal)
    guide = pp.AutoSymmetrized(base, pp.PermutationSymmetry(SYMMETRY), estimator=pp.Exact())
    with pytest.raises(TypeError, match=r"site 'w' without a rep(.|\n)*TraceSymmetrized_ELBO\(\)"):
        loss.loss_and_grads(model, guide)


def test_the_density_of_sites_without_rsample_is_known():
    base = Drawn(NonreparameterizedNormal)
    guide = pp.AutoSymmetrized(
        base, pp.PermutationSymmetry(SYMMETRY), estimator=pp.Exact(), permute=False
    )
    trace = poutine.trace(guide).get_trace()
    expected = log_q_symmetrized(trace.nodes["w"]["value"], base.loc)
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def choosing(z):
    """Locs of the symmetric site, which depend on a discrete one."""
    return LOC * (1.0 + z.unsqueeze(-1))


def model_with_choice():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(w.tanh().sum(-1) + z, 0.5), obs=torch.tensor(1.0))


def test_sites_that_depend_on_a_discrete_one_under_the_symmetrized_loss():
    """log q^G - log q counts among the costs of the discrete site, too."""
    logit = torch.nn.Parameter(torch.tensor(0.2))

    def guide():
        pyro.module("guide", torch.nn.ParameterList([logit]))
        z = pyro.sample("z", dist.Bernoulli(logits=logit))
        pyro.sample("w", dist.Normal(choosing(z), SCALE).to_event(1))

    loss = pp.TraceSymmetrized_ELBO(
        symmetry=pp.PermutationSymmetry(SYMMETRY),
        estimator=pp.Exact(),
        num_particles=4000,
        vectorize_particles=True,
        max_plate_nesting=0,
    )

    def found():
        logit.grad = None
        loss.loss_and_grads(model_with_choice, guide)
        return logit.grad.clone()

    def by_hand():
        parameter = torch.tensor(0.2, requires_grad=True)
        total = 0.0
        for z in (torch.tensor(0.0), torch.tensor(1.0)):
            w = choosing(z) + SCALE * torch.randn(4000, 3)
            log_p = dist.Normal(0.0, 1.0).log_prob(w).sum(-1) + dist.Bernoulli(0.3).log_prob(z)
            log_p = log_p + dist.Normal(w.tanh().sum(-1) + z, 0.5).log_prob(torch.tensor(1.0))
            log_q = dist.Bernoulli(logits=parameter).log_prob(z)
            cost = (log_q + log_q_symmetrized(w, choosing(z)) - log_p).mean()
            total = total + log_q.exp() * cost
        return torch.autograd.grad(total, parameter)[0]

    assert agrees([found() for _ in range(16)], [by_hand() for _ in range(16)])


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize("estimator", [pp.Exact(), pp.Bethe()], ids=str)
def test_wake_phase_holds_the_draws_fixed(estimator, permute, vectorized):
    guide, particles = normal_guide(estimator), 6
    guide.permute = permute
    loss = ReweightedWakeSleep(
        num_particles=particles,
        model_has_params=False,
        vectorize_particles=vectorized,
        max_plate_nesting=0,
    )
    drawn = []

    def recording():
        with poutine.trace() as tracer:
            result = guide()
        drawn.append(tracer.trace.nodes["w_unconstrained"]["value"].detach())
        return result

    guide.base.zero_grad()
    loss.loss_and_grads(model, recording)
    w, loc = torch.cat(drawn).reshape(particles, 3), LOC.clone().requires_grad_()
    log_q = log_q_symmetrized(w, loc)
    weights = (log_joint(w) - log_q).detach().softmax(0)
    (-(weights * log_q).sum()).backward()
    torch.testing.assert_close(guide.base.locs.w.grad, loc.grad)


def test_tail_adaptive_weights_are_those_of_the_symmetrized_guide():
    guide, particles = normal_guide(), 5
    loss = TraceTailAdaptive_ELBO(
        num_particles=particles, vectorize_particles=True, max_plate_nesting=0
    )
    guide.base.zero_grad()
    pyro.set_rng_seed(1)
    loss.loss_and_grads(model, guide)
    pyro.set_rng_seed(1)
    loc = LOC.clone().requires_grad_()
    w = dist.Normal(loc, SCALE).rsample((particles,))
    log_ratio = log_joint(w) - log_q_symmetrized(w, loc)
    # As Pyro has it: particles in descending order of p / q by the argsort.
    weights = 1.0 / (log_ratio.argsort() + 1.0)
    (-(weights * log_ratio).sum() / weights.sum() / particles).backward()
    torch.testing.assert_close(guide.base.locs.w.grad, loc.grad)


@pytest.mark.parametrize("permute", [True, False])
def test_losses_that_ask_for_no_density_get_the_draws(permute):
    """A predictive distribution does not depend on the order of the units."""
    guide = normal_guide()
    guide.permute = permute
    loss = EnergyDistance(num_particles=300, max_plate_nesting=1)
    found, expected = [], []
    for _ in range(16):
        for each, values in ((guide, found), (guide.base, expected)):
            values.append(loss(model, each).detach().reshape(1))
    assert agrees(found, expected)


def hessian(loss, parameter):
    pyro.set_rng_seed(7)
    (first,) = torch.autograd.grad(loss(), parameter, create_graph=True)
    return torch.stack([torch.autograd.grad(g, parameter, retain_graph=True)[0] for g in first])


def exact_hessian(loc):
    pyro.set_rng_seed(7)
    noise = torch.randn(3)

    def loss(loc):
        w = loc + SCALE * noise
        return log_q_symmetrized(w, loc) - log_joint(w)

    return torch.autograd.functional.hessian(loss, loc.detach())


def test_second_derivatives_of_exact_are_those_of_the_sum_over_the_group():
    pyro.settings.set(module_local_params=True)
    guide = normal_guide()
    parameter = guide.base.locs.w
    found = hessian(lambda: Trace_ELBO().differentiable_loss(model, guide), parameter)
    torch.testing.assert_close(found, exact_hessian(parameter))


@pytest.mark.parametrize(
    "estimator", [pp.ImportanceSampled(4000), pp.SampledChainRule(4000), pp.InfoNCE(4000)], ids=str
)
def test_second_derivatives_of_sampled_estimators_converge_to_them(estimator):
    pyro.settings.set(module_local_params=True)
    guide = normal_guide(estimator)
    parameter = guide.base.locs.w
    found = hessian(lambda: Trace_ELBO().differentiable_loss(model, guide), parameter)
    torch.testing.assert_close(found, exact_hessian(parameter), rtol=0.05, atol=0.3)


def test_second_derivatives_of_info_nce_are_those_of_its_gradient():
    pyro.settings.set(module_local_params=True)
    guide, step = normal_guide(pp.InfoNCE(8)), 1e-5
    parameter, loss = guide.base.locs.w, lambda: Trace_ELBO().differentiable_loss(model, guide)

    def first():
        pyro.set_rng_seed(7)
        return torch.autograd.grad(loss(), parameter)[0]

    columns = []
    for i in range(3):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[i] += sign * step
            sides.append(first())
            with torch.no_grad():
                parameter[i] -= sign * step
        columns.append((sides[0] - sides[1]) / (2 * step))
    torch.testing.assert_close(hessian(loss, parameter), torch.stack(columns), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("overlapping", [True, False])
def test_second_derivatives_of_bethe_are_refused(overlapping):
    """Whether units overlap or not, and whatever the gradient is taken of."""
    pyro.settings.set(module_local_params=True)
    guide = normal_guide(pp.Bethe())
    if not overlapping:
        with torch.no_grad():
            guide.base.locs.w.copy_(torch.tensor([-100.0, 0.0, 100.0]))
    for loss in (Trace_ELBO(), pp.TraceSymmetrized_ELBO()):
        value = loss.differentiable_loss(model, guide)
        with pytest.raises(RuntimeError, match=r"Bethe\(\) has no second derivatives.*Exact\(\)"):
            torch.autograd.grad(value, guide.base.locs.w, create_graph=True)
        loss.differentiable_loss(model, guide).backward()


def test_newton_steps():
    """Pyro's multi-optimizers take second derivatives of the loss."""
    guide = normal_guide()
    params = {"w": guide.base.locs.w}
    before = params["w"].detach().clone()
    second = exact_hessian(before)
    pyro.set_rng_seed(7)
    loss = Trace_ELBO().differentiable_loss(model, guide)
    (first,) = torch.autograd.grad(loss, params["w"], retain_graph=True)
    stepped = Newton(trust_radii={"w": 10.0}).get_step(loss, params)["w"]
    torch.testing.assert_close(stepped, before - torch.linalg.solve(second, first))
    guide.estimator = pp.Bethe()
    with pytest.raises(RuntimeError, match=r"Bethe\(\) has no second derivatives"):
        Newton().get_step(Trace_ELBO().differentiable_loss(model, guide), params)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("estimator", [pp.Exact(), pp.Bethe()], ids=str)
def test_functional_transforms_are_refused(estimator):
    guide = normal_guide(estimator)
    symmetry = guide.symmetry
    noise = torch.randn(3)

    def loss(loc):
        w, scale = loc + SCALE * noise, torch.full((3,), SCALE)
        density = FactorizedDensity(
            symmetry.group, {"w": w}, {"w": loc}, {"w": scale}, torch.Size()
        )
        return estimator.log_ratio(density)

    def expected(loc):
        w = loc + SCALE * noise
        return log_q_symmetrized(w, loc) - dist.Normal(loc, SCALE).log_prob(w).sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        with pytest.raises((RuntimeError, NotImplementedError)):
            transform(loss)(LOC)
    (found,) = torch.autograd.functional.jacobian(loss, (LOC,))
    torch.testing.assert_close(found, torch.func.grad(expected)(LOC))
