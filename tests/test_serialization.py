"""Guides survive copying, pickling, state dicts and the param store, and the original too."""

import copy
import io

import pyro
import pytest
import torch
from marks import on_each
from problems import PROBLEMS, local_latents, one_hidden_layer, two_hidden_layers
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.optim import Adam

import pyro_perm as pp


def saved_and_loaded(guide):
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    pyro.clear_param_store()
    return torch.load(buffer, weights_only=False)


def train(guide, problem, steps=3):
    svi = SVI(problem.model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    return [svi.step(*problem.args) for _ in range(steps)]


def evaluate(guide, problem):
    """Draws, loss and median under a fixed seed."""
    pyro.set_rng_seed(1)
    draws = guide(*problem.args)
    loss = torch.tensor(Trace_ELBO().loss(problem.model, guide, *problem.args))
    return draws, loss, guide.median()


@pytest.fixture(params=[False, True], ids=["param_store", "module_local"])
def _parameters(request):
    pyro.settings.set(module_local_params=request.param)


@pytest.mark.usefixtures("_parameters")
@pytest.mark.parametrize("clone", [copy.deepcopy, saved_and_loaded])
@pytest.mark.parametrize("problem", [two_hidden_layers(), local_latents()], ids=str)
def test_copies_and_originals_keep_working(problem, clone):
    guide = problem.guide()
    train(guide, problem)
    expected = evaluate(guide, problem)
    copied = clone(guide)
    pyro.clear_param_store()  # where the two have the same names
    for each in (copied, guide):
        torch.testing.assert_close(evaluate(each, problem), expected)
        assert each.base.master is None
        pyro.clear_param_store()
    assert copied.symmetry.groups == guide.symmetry.groups
    assert copied.estimator == guide.estimator
    before = copy.deepcopy(guide.state_dict())
    train(copied, problem)
    torch.testing.assert_close(guide.state_dict(), before)
    assert not torch.equal(copied.median()["w1"], guide.median()["w1"])
    pyro.clear_param_store()
    train(guide, problem)


@pytest.mark.parametrize("clone", [copy.deepcopy, saved_and_loaded])
def test_copies_of_lists_of_guides(clone):
    problem = local_latents()
    rest = poutine.block(problem.model, hide=["w1"])
    parts = AutoGuideList(problem.model)
    parts.append(AutoNormal(poutine.block(problem.model, expose=["w1"])))
    parts.append(AutoNormal(rest, init_loc_fn=pp.init_to_fan_in))
    guide = pp.AutoSymmetrized(parts, problem.symmetry())
    copied = clone(guide)
    assert copied.base.master is None
    assert all(part.master() is copied.base for part in copied.base)


@pytest.mark.usefixtures("_parameters")
@on_each(PROBLEMS)
def test_state_dict(problem):
    guide = problem.guide()
    train(guide, problem)
    expected = evaluate(guide, problem)
    state = copy.deepcopy(guide.state_dict())
    assert all(name.startswith("base.") for name in state)
    pyro.clear_param_store()
    fresh = problem.guide()
    fresh(*problem.args)
    site = guide.symmetry.sites[0]
    assert not torch.equal(fresh.median()[site], expected[2][site])
    fresh.load_state_dict(state)
    torch.testing.assert_close(evaluate(fresh, problem), expected)


def test_param_store(tmp_path):
    problem = one_hidden_layer()
    guide = problem.guide()
    train(guide, problem)
    expected = evaluate(guide, problem)
    pyro.get_param_store().save(tmp_path / "params")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params")
    fresh = problem.guide()
    fresh(*problem.args)
    torch.testing.assert_close(evaluate(fresh, problem), expected)


def test_a_trained_base_can_be_loaded_into_a_wrapped_one():
    problem = one_hidden_layer()
    base = problem.base()
    train(base, problem)
    median = base.median()
    state = copy.deepcopy(pyro.get_param_store().get_state())  # as a file would have it
    pyro.clear_param_store()
    pyro.get_param_store().set_state(state)
    guide = problem.guide()
    guide(*problem.args)
    torch.testing.assert_close(guide.median(), median)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("permute", [True, False])
def test_compiled_guides_can_be_saved(permute):
    problem = one_hidden_layer()
    guide = problem.guide(permute=permute)
    guide(*problem.args)
    compiled = torch.jit.trace_module(guide, {"call": problem.args}, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(compiled, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for _ in range(2):
        pyro.set_rng_seed(1)
        expected = guide.call(*problem.args)
        pyro.set_rng_seed(1)
        torch.testing.assert_close(loaded.call(*problem.args), expected)


def test_losses_can_be_copied():
    problem = one_hidden_layer()
    loss = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry(), estimator=pp.Exact())
    base = problem.base()
    base(*problem.args)
    values = []
    for each in (loss, copy.deepcopy(loss)):
        pyro.set_rng_seed(1)
        values.append(each.loss(problem.model, base, *problem.args))
    assert values[0] == values[1]
