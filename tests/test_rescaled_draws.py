"""Draws and losses of guides that rescale units."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import slow
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import ClippedAdam
from rescaled_networks import (
    DEGREES,
    Network,
    X,
    Y,
    brute_force,
    laplace,
    units,
)
from scipy import stats

import pyro_perm as pp
from pyro_perm import Axis
from pyro_perm.trace_sites import log_ratio_nodes


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "network", [Network(3), *slow(Network(2, prior=laplace))], ids=["3", "Laplace"]
)
def test_draws_follow_the_prior_along_orbits_and_predict_as_before(network):
    guide = network.guide()
    guide()
    pyro.set_rng_seed(0)
    draws = guide.sample_posterior(1000)
    plain = pp.AutoSymmetrized(guide.base, network.symmetry, permute=False).sample_posterior(1000)

    def outputs(values):
        hidden = network.activation(X @ values["w"].mT + values["b"].unsqueeze(-2))
        return (hidden @ values["v"].mT).squeeze(-1)

    for output, other in zip(outputs(draws.values).T, outputs(plain.values).T, strict=True):
        assert stats.ks_2samp(output.numpy(), other.numpy()).pvalue > 1e-3
    # Given its orbit, where on it a unit lies is a draw of the prior: so are its ranks uniform.
    entries = units(draws.values)[:400]
    log_prior = [network.prior(scale)().log_prob for scale in (0.9, 1.2, 0.7)]
    t = torch.linspace(-8, 8, 2001)
    rescaled = entries[..., None, :] * torch.exp(DEGREES * t[:, None])
    parts = zip(log_prior, rescaled.split([2, 1, 1], -1), strict=True)
    heights = torch.cat([f(part) for f, part in parts], -1).sum(-1) + DEGREES.sum() * t
    weights = heights.softmax(-1)
    ranks = weights[..., :1001].sum(-1) - 0.5 * weights[..., 1000]
    assert stats.kstest(ranks.flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.slow
def test_draws_one_by_one_and_together_have_one_law():
    network = Network(2)
    guide = network.guide()
    guide()
    pyro.set_rng_seed(0)
    together = guide.sample_posterior(1000)
    one_by_one = [poutine.trace(guide).get_trace() for _ in range(200)]
    log_q = torch.stack([trace.log_prob_sum().detach() for trace in one_by_one])
    assert stats.ks_2samp(together.log_q.numpy(), log_q.numpy()).pvalue > 1e-3
    for site in ("w", "v"):
        each = torch.stack([trace.nodes[site]["value"].detach() for trace in one_by_one])
        found = stats.ks_2samp(together.values[site].flatten(), each.flatten())
        assert found.pvalue > 1e-3


def test_a_traced_draw_has_the_density_of_the_guide_there():
    """``log q~(w') = log p(w') + log q_Q - log p_Q``, by integrals at the rescaled draw."""
    network = Network(2)
    guide = network.guide(estimator=pp.Exact())
    trace = poutine.trace(guide).get_trace()
    density = next(iter(log_ratio_nodes(trace.nodes).values()))["fn"].density
    moved = {site: trace.nodes[site]["value"] for site in ("w", "b", "v")}
    assert not torch.allclose(moved["v"].abs().sum(), density.values["v"].abs().sum())
    log_ratio = brute_force(network, moved, density.locs, density.scales)
    log_q = dist.Normal(units(density.locs), units(density.scales)).log_prob(units(moved)).sum()
    assert trace.log_prob_sum().item() == pytest.approx((log_ratio + log_q).item(), abs=1e-7)


def test_a_replayed_draw_is_the_same():
    network = Network(2)
    guide = network.guide()
    trace = poutine.trace(guide).get_trace()
    replayed = poutine.trace(poutine.replay(guide, trace)).get_trace()
    assert set(replayed.nodes) == set(trace.nodes)
    for site in ("w", "b", "v"):
        torch.testing.assert_close(replayed.nodes[site]["value"], trace.nodes[site]["value"])
    assert replayed.log_prob_sum().item() == pytest.approx(trace.log_prob_sum().item())


@pytest.fixture(scope="module", params=[True, False])
def certified(request):
    """A network, a guide that permutes or does not, and its bound."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    network = Network(3, noise=2.0)
    guide = network.guide(estimator=pp.Exact(), permute=request.param)
    bound = pp.symmetrized_elbo(
        network, guide, num_samples=60, estimator=pp.Exact(), progress=False
    )
    return network, guide, bound


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        pp.TraceSymmetrized_ELBO(),
        pp.TraceSymmetrized_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=lambda loss: f"{type(loss).__name__}-{loss.num_particles}",
)
def test_every_loss_has_the_certified_bound(loss, certified):
    network, guide, bound = certified
    values = torch.tensor([-loss.loss(network, guide) for _ in range(60 // loss.num_particles)])
    error = math.hypot(values.std().item() / len(values) ** 0.5, bound.lower_standard_error)
    assert values.mean().item() == pytest.approx(bound.lower, abs=4.5 * error)
    assert bound.lower - bound.base > 4.5 * error  # Without its correction, a loss would fail.
    assert bound.mutual_information.scales > 1.0


def test_losses_correct_unmodified_guides():
    network = Network(3)
    base = network.base()
    loss = pp.TraceSymmetrized_ELBO(symmetry=network.symmetry)
    guide = pp.AutoSymmetrized(base, network.symmetry)
    for one, other in ((base, guide), (guide, base)):
        values = []
        for each in (one, other):
            loss.loss(network, each)
            pyro.set_rng_seed(5)
            values.append(loss.loss(network, each))
        assert values[0] == pytest.approx(values[1], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_units", "activation"), [(2, torch.relu), (3, torch.relu), (2, torch.abs)]
)
def test_trained_bounds_stay_below_the_evidence(num_units, activation):
    network = Network(num_units, activation)
    guide = network.guide()
    optimizer = ClippedAdam({"lr": 0.08, "lrd": 0.25**0.01})
    svi = SVI(network, guide, optimizer, pp.TraceSymmetrized_ELBO())
    for _ in range(100):
        svi.step()
    bound = pp.symmetrized_elbo(network, guide, num_samples=100, progress=False)
    evidence = pp.log_evidence(network, num_temperatures=30, progress=False)
    error = 4 * math.hypot(bound.upper_standard_error, evidence.standard_error)
    assert bound.upper < evidence.log_evidence + error
    assert bound.lower > bound.base + 1.0


def hierarchical():
    """Weights whose scale is another latent variable, and outgoing ones with a learned scale."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 2), tau[..., None, None]).to_event(2))
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.2).to_event(1))
    v = pyro.sample("v", dist.Normal(torch.zeros(1, 3), scale).to_event(2))
    f = (torch.relu(X @ w.mT + b.unsqueeze(-2)) @ v.mT).squeeze(-1)
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(f, 0.5), obs=Y)


@pytest.mark.slow
@pytest.mark.parametrize("permute", [True, False])
def test_priors_may_depend_on_draws_and_on_what_is_learned(permute):
    incoming = Axis(0, scale=1)
    spec = {"units": {"w": incoming, "b": incoming, "v": Axis(1, scale=-1)}}
    base = AutoNormal(hierarchical, init_loc_fn=pp.init_to_fan_in, init_scale=0.3)
    guide = pp.AutoSymmetrized(base, pp.PermutationSymmetry(spec), permute=permute)
    guide()
    assert not guide.priors.are_constant
    trace = poutine.trace(guide).get_trace()
    density = next(iter(log_ratio_nodes(trace.nodes).values()))["fn"].density
    tau = trace.nodes["tau"]["value"]
    assert density.priors.sites["w"].scale.unique().item() == pytest.approx(tau.item())
    losses = {}
    for loss in (Trace_ELBO(), pp.TraceSymmetrized_ELBO()):
        pyro.set_rng_seed(0)
        losses[loss] = torch.tensor([loss.loss(hierarchical, guide) for _ in range(60)])
    one, other = losses.values()
    error = math.hypot(one.std().item(), other.std().item()) / 60**0.5
    assert one.mean().item() == pytest.approx(other.mean().item(), abs=4.5 * error)
    # What is learned of the prior gets its gradient through the correction too.
    scale = pyro.param("scale").unconstrained()
    pyro.set_rng_seed(1)
    with torch.enable_grad():
        trace = poutine.trace(guide).get_trace()
        (node,) = log_ratio_nodes(trace.nodes).values()
        (slope,) = torch.autograd.grad(node["fn"].log_factor, scale)
    assert slope.abs() > 1e-6


def two_sites(prior_scale, family=dist.Normal):
    w = pyro.sample("w", family(torch.zeros(3, 2), prior_scale).to_event(2))
    v = pyro.sample("v", dist.Normal(torch.zeros(1, 3), 0.7).to_event(2))
    with pyro.plate("data", len(X), dim=-1):
        f = (torch.relu(X @ w.mT) @ v.mT).squeeze(-1)
        pyro.sample("y", dist.Normal(f, 0.5), obs=Y)


def scale_from_a_prior():
    two_sites(pyro.sample("tau", dist.LogNormal(0.0, 0.3)))


TWO_SITES = pp.PermutationSymmetry({"units": {"w": Axis(0, scale=1), "v": Axis(1, scale=-1)}})


def scale_by_index(index):
    two_sites(torch.tensor([0.9, 0.3])[index].reshape(1, 1))


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_priors_that_arguments_set(family):
    """They are followed from call to call."""

    def model(prior_scale):
        two_sites(prior_scale, family)

    guide = pp.AutoSymmetrized(
        AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.3), TWO_SITES
    )
    for prior_scale in (0.9, 0.3):
        for argument in (prior_scale, torch.full((3, 1), prior_scale)):
            trace = poutine.trace(guide).get_trace(argument)
            (node,) = log_ratio_nodes(trace.nodes).values()
            assert node["fn"].density.priors.sites["w"].scale.unique().item() == prior_scale


def test_priors_that_integers_set_are_refused_where_they_change():
    guide = pp.AutoSymmetrized(
        AutoNormal(scale_by_index, init_loc_fn=pp.init_to_fan_in, init_scale=0.3), TWO_SITES
    )
    loss = pp.TraceSymmetrized_ELBO()
    loss.loss(scale_by_index, guide, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"the prior of site 'w' is not the one .* give numbers"):
        loss.loss(scale_by_index, guide, torch.tensor([1]))


def test_guides_that_leave_out_what_a_prior_depends_on_are_refused():
    hidden = poutine.block(scale_from_a_prior, hide=["tau"])
    base = AutoNormal(hidden, init_loc_fn=pp.init_to_fan_in, init_scale=0.3)
    with pytest.raises(ValueError, match="depend on other sites, and site 'tau' is left out"):
        pp.TraceSymmetrized_ELBO(symmetry=TWO_SITES).loss(scale_from_a_prior, base)
    with pytest.raises(ValueError, match=r"the prior of site 'w' is not the one .* leaves out"):
        guide = pp.AutoSymmetrized(base, TWO_SITES)
        pp.TraceSymmetrized_ELBO().loss(scale_from_a_prior, guide)


def two_layers():
    sites = {"w0": (3, 2), "b0": (3,), "w1": (2, 3), "b1": (2,), "w2": (1, 2)}
    drawn = {
        site: pyro.sample(site, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
        for site, shape in sites.items()
    }
    hidden = torch.relu(X @ drawn["w0"].mT + drawn["b0"])
    hidden = torch.relu(hidden @ drawn["w1"].mT + drawn["b1"])
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal((hidden @ drawn["w2"].mT).squeeze(-1), 0.5), obs=Y)


@pytest.mark.slow
def test_of_two_layers_that_share_a_matrix_one_is_rescaled():
    symmetry = pp.find_symmetry(two_layers, scales=True)
    guide = pp.AutoSymmetrized(
        AutoNormal(two_layers, init_loc_fn=pp.init_to_fan_in, init_scale=0.4), symmetry
    )
    with pytest.warns(UserWarning, match="group 'P1' are not rescaled: it shares site 'w1'"):
        guide()
    assert guide.symmetry.group.open_groups == ("P0",)

    def information(estimator):
        pyro.set_rng_seed(0)
        bound = pp.symmetrized_elbo(
            two_layers, guide, num_samples=60, estimator=estimator, progress=False
        )
        return bound.mutual_information

    exact, chain, sampled = map(information, (pp.Exact(), pp.SampledChainRule(64), pp.InfoNCE(24)))
    error = 4 * exact.lower_standard_error
    assert chain.lower < exact.lower + error and chain.upper > exact.upper - error
    assert sampled.lower < exact.lower + error
    assert exact.scales > 0.5
    assert exact.scales == pytest.approx(chain.scales, rel=1e-6)  # Of the same draws.


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_what_cannot_be_rescaled_is_refused():
    network = Network(2)
    guide = network.guide()
    guide()
    with pytest.raises(TypeError, match=r"group 'units' rescales .* torch.jit.trace"):
        JitTrace_ELBO(max_plate_nesting=1, ignore_jit_warnings=True).loss_and_grads(network, guide)
    joint = AutoMultivariateNormal(network)
    with pytest.raises(TypeError, match="group 'units' rescales its units, which takes"):
        pp.AutoSymmetrized(joint, network.symmetry, estimator=pp.ImportanceSampled(4))()
