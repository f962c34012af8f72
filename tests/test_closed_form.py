"""The closed-form KL is that of the stock losses without their noise, under every handler."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import traced_log_ratio
from losses import Recorder, loss_and_grads, started
from marks import on_each
from problems import PROBLEMS, normal
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import kl_divergence

import pyro_perm as pp

# Some models here are priors without data, of which no check can tell whether sites are tied.
pytestmark = pytest.mark.filterwarnings("ignore:group 'hidden' leaves the log joint as it is")


@pytest.mark.slow
@on_each(PROBLEMS)
@pytest.mark.parametrize("route", ["permute", "plain", "base"])
def test_closed_form_has_the_expectation_of_trace_elbo(problem, route):
    guide = started(problem, permute=route == "permute")
    # A loss that guesses the nesting of plates runs the guide for it, and then draws other numbers.
    options = {
        "num_particles": 30,
        "vectorize_particles": True,
        "max_plate_nesting": problem.max_plate_nesting,
    }
    symmetrized = pp.TraceSymmetrized_ELBO(**options)
    closed_form_guide = guide
    if route == "base":
        symmetrized = pp.TraceSymmetrized_ELBO(
            symmetry=problem.symmetry(), estimator=pp.Exact(), **options
        )
        closed_form_guide = guide.base
    differences = []
    for seed in range(8):
        rows = []
        for loss, chosen in ((symmetrized, closed_form_guide), (Trace_ELBO(**options), guide)):
            guide.zero_grad()
            pyro.set_rng_seed(seed)
            value = torch.tensor([loss.loss_and_grads(problem.model, chosen, *problem.args)])
            rows.append(torch.cat([value, *(p.grad.flatten() for p in guide.parameters())]))
        differences.append(rows[0] - rows[1])
    differences = torch.stack(differences)
    # The draws are common, so this is the noise of the KL alone. A t statistic with 7 degrees of
    # freedom exceeds 10 once in 45,000 times.
    error = differences.std(0) / len(differences) ** 0.5
    assert (differences.mean(0).abs() <= 10 * error + 1e-9).all()


@on_each(PROBLEMS)
def test_closed_form_is_the_same_on_permuted_draws(problem):
    guide = started(problem)
    recorder, loss = Recorder(guide), pp.TraceSymmetrized_ELBO()
    value = loss.loss(problem.model, recorder, *problem.args)
    guide.permute = False
    base_draws = recorder.trace.copy()
    for name in guide.median():
        base_draws.remove_node(name)
    plain = loss.loss(problem.model, poutine.replay(guide, trace=base_draws), *problem.args)
    assert plain == pytest.approx(value)


def prior_only():
    """Weights without data."""
    w1, w2 = normal("w1", 3, 2), normal("w2", 1, 3, scale=2.0)
    return w1, w2


SPEC = {"hidden": {"w1": 0, "w2": 1}}


def on_prior(model=prior_only, estimator=None, permute=True):
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.4)
    symmetry = pp.PermutationSymmetry(SPEC)
    guide = pp.AutoSymmetrized(base, symmetry, estimator=estimator, permute=permute)
    guide()
    return guide


def prior_kl(guide):
    """``KL(q || p)`` of :func:`prior_only`, by torch."""
    total = 0.0
    for name, scale in (("w1", 1.0), ("w2", 2.0)):
        q = dist.Normal(*guide.base._get_loc_and_scale(name))
        total += kl_divergence(q, dist.Normal(torch.zeros(()), scale)).sum()
    return total.item()


@pytest.mark.parametrize("particles", [{}, {"num_particles": 4, "vectorize_particles": True}])
@pytest.mark.parametrize("permute", [True, False])
def test_kl_has_no_variance_and_is_torchs(permute, particles):
    guide = on_prior(estimator=pp.InfoNCE(1), permute=permute)  # K = 1: I is estimated as zero.
    loss = pp.TraceSymmetrized_ELBO(**particles)
    values = [loss.loss(prior_only, guide) for _ in range(5)]
    assert values == pytest.approx([prior_kl(guide)] * 5, abs=1e-10)


def test_loss_on_the_prior_is_kl_minus_information():
    guide = on_prior(estimator=pp.Exact())
    recorder = Recorder(guide)
    value = pp.TraceSymmetrized_ELBO().loss(prior_only, recorder)
    log_ratio = traced_log_ratio(recorder.trace).item()
    assert log_ratio < 0
    assert value == pytest.approx(prior_kl(guide) + log_ratio)


def test_other_priors_are_left_to_monte_carlo():
    def model():
        pyro.sample("w1", dist.Laplace(torch.zeros(3, 2), 1.0).to_event(2))
        pyro.sample("w2", dist.StudentT(4.0, torch.zeros(1, 3)).to_event(2))

    guide = on_prior(model)
    value, gradient = loss_and_grads(pp.TraceSymmetrized_ELBO(), model, guide, ())
    expected = loss_and_grads(Trace_ELBO(), model, guide, ())
    assert value == pytest.approx(expected[0])
    torch.testing.assert_close(gradient, expected[1])


@pytest.mark.parametrize("permute", [True, False])
def test_scale_and_mask_weigh_the_closed_form(permute):
    guide = on_prior(estimator=pp.InfoNCE(1), permute=permute)
    kl = prior_kl(guide)

    def loss(handler):
        return pp.TraceSymmetrized_ELBO().loss(handler(prior_only), handler(guide))

    assert loss(poutine.scale(scale=0.3)) == pytest.approx(0.3 * kl)
    assert loss(poutine.mask(mask=torch.tensor(True))) == pytest.approx(kl)
    assert loss(poutine.mask(mask=torch.tensor(False))) == 0.0


@pytest.mark.parametrize("size", [2, 6])
def test_subsampled_plates_weigh_the_closed_form(size):
    def model():
        prior_only()
        with pyro.plate("data", 6, subsample_size=size):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = on_prior(model, estimator=pp.InfoNCE(1))
    q = dist.Normal(*guide.base._get_loc_and_scale("z"))
    local = kl_divergence(q, dist.Normal(torch.zeros(()), 1.0))
    recorder = Recorder(guide)
    value = pp.TraceSymmetrized_ELBO().loss(model, recorder)
    index = recorder.trace.nodes["data"]["value"]
    expected = prior_kl(guide) + 6 / size * local[index].sum().item()
    assert value == pytest.approx(expected)


def test_guides_in_another_order_are_left_to_monte_carlo():
    def model():
        prior_only()
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    base = AutoNormal(poutine.block(model, expose=["w1", "w2"]), init_loc_fn=pp.init_to_fan_in)

    def guide():
        base()
        b = pyro.sample("b", dist.Normal(torch.tensor(0.3), 0.7))
        pyro.sample("a", dist.Normal(0.5 * b, 0.6))

    options = {"symmetry": pp.PermutationSymmetry(SPEC), "estimator": pp.InfoNCE(1)}
    loss = pp.TraceSymmetrized_ELBO(**options)
    guide()
    pyro.set_rng_seed(1)
    value = loss.loss(model, guide)
    pyro.set_rng_seed(1)
    assert value == pytest.approx(Trace_ELBO().loss(model, guide))
