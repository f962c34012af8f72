"""Laplace approximations as one call: the Gaussian of the Hessian, with the symmetry's gain."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import one_hidden_layer
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal, init_to_value
from pyro.optim import Adam

import pyro_perm as pp


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def trained(problem, num=100):
    mode = AutoLaplaceApproximation(problem.model, init_loc_fn=pp.init_to_fan_in)
    svi = SVI(problem.model, mode, Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(num):
        svi.step(*problem.args)
    return mode


def test_the_gaussian_is_that_of_the_hessian():
    """Of a log joint whose Hessian is known: Normals, one of them observed."""

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 0.5), obs=torch.tensor(1.0))

    mode = AutoLaplaceApproximation(model, init_loc_fn=init_to_value(values={"w": torch.ones(3)}))
    mode()
    guide = pp.laplace_approximation(mode)
    precision = torch.eye(3) + torch.ones(3, 3) / 0.5**2
    gaussian = guide.base.get_posterior()
    torch.testing.assert_close(gaussian.covariance_matrix, precision.inverse())
    torch.testing.assert_close(gaussian.loc, torch.ones(3))


def test_it_is_certified_like_any_guide():
    problem = one_hidden_layer()
    guide = pp.laplace_approximation(trained(problem), *problem.args)
    assert guide.estimator == pp.ImportanceSampled(32)
    elbo = pp.symmetrized_elbo(problem.model, guide, *problem.args, num_samples=16, progress=False)
    assert 0 < elbo.mutual_information.lower <= guide.symmetry.log_order + 1e-9
    assert math.isfinite(elbo.lower)


def test_symmetry_and_estimator_are_passed_on():
    problem = one_hidden_layer()
    symmetry, estimator = problem.symmetry(), pp.Exact()
    mode = trained(problem)
    guide = pp.laplace_approximation(mode, *problem.args, symmetry=symmetry, estimator=estimator)
    assert guide.symmetry is symmetry and guide.estimator is estimator


def saddle(x, y):
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
    pyro.sample("y", dist.Normal(torch.tanh(x @ w1.mT) @ w2.mT, 0.1).to_event(2), obs=y)


def test_what_is_no_mode_is_refused():
    x = torch.linspace(-1, 1, 10).unsqueeze(-1)
    zero = init_to_value(values={"w1": torch.zeros(3, 1), "w2": torch.zeros(1, 3)})
    mode = AutoLaplaceApproximation(saddle, init_loc_fn=zero)
    mode(x, x)
    with pytest.raises(ValueError, match=r"not positive definite .* this is no mode: train"):
        pp.laplace_approximation(mode, x, x)


def test_what_has_not_been_trained_or_is_another_guide_is_refused():
    problem = one_hidden_layer()
    with pytest.raises(ValueError, match="has not run yet: train it"):
        pp.laplace_approximation(AutoLaplaceApproximation(problem.model), *problem.args)
    with pytest.raises(TypeError, match="must be an AutoLaplaceApproximation, but is a AutoNormal"):
        pp.laplace_approximation(AutoNormal(problem.model), *problem.args)
