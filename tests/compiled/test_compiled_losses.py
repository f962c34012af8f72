"""Compiled losses are the losses, in one graph."""

import pyro
import pytest
import torch
from problems import two_hidden_layers

import pyro_perm as pp

ESTIMATORS = [pp.Bethe(), pp.InfoNCE(4), pp.Exact(), pp.ImportanceSampled(4)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    with pyro.settings.context(module_local_params=True):
        yield
    torch.compiler.reset()


def called_loss(problem, estimator=None, **options):
    """The module of a loss that has been called once."""
    guide = problem.guide(estimator)
    loss = pp.FunctionalSymmetrized_ELBO(**options)(problem.model, guide)
    loss(*problem.args)
    return loss


def compiled(loss, backend="aot_eager"):
    return torch.compile(loss, fullgraph=True, backend=backend)


def value_and_gradients(loss, called, args, seed=3):
    pyro.set_rng_seed(seed)
    value = called(*args)
    return [value, *torch.autograd.grad(value, [*loss.parameters()])]


def assert_same(loss, called, args, **options):
    """With the same noise."""
    expected = value_and_gradients(loss, loss, args)
    torch.testing.assert_close(value_and_gradients(loss, called, args), expected, **options)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_value_and_gradients_are_those_of_the_loss(estimator):
    problem = two_hidden_layers()
    loss = called_loss(problem, estimator)
    called = compiled(loss)
    for _ in range(2):
        assert_same(loss, called, problem.args)
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
