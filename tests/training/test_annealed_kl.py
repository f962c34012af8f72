"""The weight is on the divergence and on its correction, in training only."""

import pyro
import pytest
import torch
from functional_noise import GiveNoise, assert_same, noise_of
from problems import hierarchical, one_hidden_layer, two_hidden_layers
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

import pyro_perm as pp

STOCK = [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO]
OURS = [pp.TraceSymmetrized_ELBO, pp.FunctionalSymmetrized_ELBO]


def started(problem):
    guide = problem.guide(pp.Exact(), permute=False)
    guide(*problem.args)
    return guide


def loss_at(elbo, weight, problem, guide):
    """The loss at a given weight and given noise, and its gradient."""
    annealed = pp.AnnealedKL(elbo, lambda step: weight)
    noise = noise_of(guide.base, 3)
    for parameter in guide.parameters():
        parameter.grad = None
    pyro.set_rng_seed(3)
    with GiveNoise(noise):
        value = annealed.loss_and_grads(problem.model, guide, *problem.args)
    grads = [p.grad for p in guide.parameters() if p.grad is not None]
    return value, torch.cat([grad.flatten() for grad in grads])


def log_likelihood_at(problem, guide):
    with GiveNoise(noise_of(guide.base, 3)):
        values = guide.base(*problem.args)
    conditioned = pyro.condition(problem.model, data=values)
    nodes = pyro.poutine.trace(conditioned).get_trace(*problem.args)
    nodes.compute_log_prob()
    return nodes.nodes["y"]["log_prob"].sum().item()


@pytest.mark.parametrize("kind", STOCK + OURS)
@pytest.mark.parametrize("problem", [two_hidden_layers(), hierarchical()], ids=str)
def test_the_loss_is_the_likelihood_at_weight_zero_and_linear_in_the_weight(kind, problem):
    guide, elbo = started(problem), kind()
    if kind in OURS:
        elbo.loss(problem.model, guide, *problem.args)
    whole, at_one = loss_at(elbo, 1.0, problem, guide)
    none, at_zero = loss_at(elbo, 0.0, problem, guide)
    part, at_part = loss_at(elbo, 0.3, problem, guide)
    assert none == pytest.approx(-log_likelihood_at(problem, guide))
    assert part == pytest.approx(0.3 * whole + 0.7 * none)
    assert torch.allclose(at_part, 0.3 * at_one + 0.7 * at_zero)
    assert not torch.allclose(at_part, at_one)


def test_losses_with_and_without_traces_agree_at_a_weight():
    problem = two_hidden_layers()
    guide = started(problem)
    fast, traced = pp.FunctionalSymmetrized_ELBO(), pp.TraceSymmetrized_ELBO()
    fast.loss(problem.model, guide, *problem.args)
    pairs = []
    for elbo in (fast, traced):
        annealed = pp.AnnealedKL(elbo, lambda step: 0.3)
        noise = noise_of(guide.base, 3)
        pyro.set_rng_seed(3)
        with GiveNoise(noise):
            pairs.append(annealed.differentiable_loss(problem.model, guide, *problem.args))
    assert_same(*pairs, guide)


def test_values_without_gradients_have_weight_one_and_take_no_step():
    problem = one_hidden_layer()
    guide = started(problem)
    elbo = pp.AnnealedKL(pp.TraceSymmetrized_ELBO(), pp.linear_warm_up(10))
    svi = SVI(problem.model, guide, pyro.optim.Adam({}), elbo)
    plain = SVI(problem.model, guide, pyro.optim.Adam({}), pp.TraceSymmetrized_ELBO())
    values = []
    for one in (svi, plain):
        one.evaluate_loss(*problem.args)
        pyro.set_rng_seed(1)
        values.append(one.evaluate_loss(*problem.args))
    assert values[0] == values[1]
    assert elbo.step == 0
    svi.step(*problem.args)
    elbo.differentiable_loss(problem.model, guide, *problem.args)
    assert (elbo.step, elbo.weight) == (2, 0.2)


def test_schedules():
    linear = pp.linear_warm_up(4, start=0.2)
    assert [linear(step) for step in (0, 2, 4, 9)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    cyclical = pp.cyclical_warm_up(10, 2, rise=0.4)
    steps = (0, 2, 4, 9, 10, 12, 20, 99)
    assert [cyclical(s) for s in steps] == pytest.approx([0, 0.5, 1, 1, 0, 0.5, 1, 1])


def test_what_makes_no_sense_is_refused():
    problem = one_hidden_layer()
    with pytest.raises(TypeError, match="JitTrace_ELBO is compiled at its first step"):
        pp.AnnealedKL(JitTrace_ELBO(), pp.linear_warm_up(4))
    with pytest.raises(TypeError, match="elbo must be an ELBO"):
        pp.AnnealedKL(pp.linear_warm_up(4), Trace_ELBO())
    with pytest.raises(ValueError, match=r"at step 0 is -1\.0"):
        pp.AnnealedKL(TraceEnum_ELBO(), lambda step: -1.0).loss_and_grads(
            problem.model, started(problem), *problem.args
        )
    with pytest.raises(ValueError, match="positive number of steps"):
        pp.linear_warm_up(0)
    with pytest.raises(ValueError, match="rise must be a share"):
        pp.cyclical_warm_up(10, 2, rise=0.0)


def test_a_killed_run_goes_on_with_its_warm_up(tmp_path):
    problem = one_hidden_layer()

    def run(steps, **kwargs):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        settings = {"kl_weight": pp.linear_warm_up(10), "progress": False}
        return pp.fit(
            problem.model, problem.base(), problem.args, steps=steps, **settings, **kwargs
        )

    undisturbed = run(8).losses
    run(5, checkpoint=tmp_path / "run.pt")
    assert run(8, checkpoint=tmp_path / "run.pt").losses == undisturbed
