"""TyXe's networks: the guide sees a network without its likelihood, inside TyXe's own fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import groups_of, written
from marks import slow
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.optim import Adam
from torch import Tensor, nn

import pyro_perm as pp

tyxe = pytest.importorskip("tyxe", reason="TyXe is not installed: make test installs it")

GROUPS = written(["0.weight[-2] 0.bias[-1] 2.weight[-1]", "2.weight[-2] 2.bias[-1] 4.weight[-1]"])
X = torch.linspace(-1, 1, 20).unsqueeze(-1).double()
Y = torch.sin(3 * X)


@pytest.fixture(autouse=True)
def _deep_getattr(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pyro 1.9 has dropped the function with which TyXe's guide finds its parameters.
    deep_getattr = lambda module, name: functools.reduce(getattr, name.split("."), module)  # noqa: E731
    monkeypatch.setattr(pyro.util, "deep_getattr", deep_getattr, raising=False)


def network(guide_builder: Callable[..., Any]) -> Any:
    """TyXe's network with two hidden layers."""
    layers = nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)
    prior = tyxe.priors.IIDPrior(dist.Normal(0.0, 1.0))
    likelihood = tyxe.likelihoods.HomoskedasticGaussian(len(X), scale=0.1)
    return tyxe.VariationalBNN(nn.Sequential(*layers), prior, likelihood, guide_builder)


def fit(bnn: Any, **options: Any) -> Tensor:
    """Mean loss of each epoch of TyXe's training."""
    losses: list[float] = []
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=10)
    bnn.fit(data, Adam({"lr": 0.01}), 20, lambda *epoch: losses.append(epoch[-1]), **options)
    return torch.tensor(losses)


def auto_normal(model: Any) -> AutoNormal:
    return AutoNormal(model, init_loc_fn=pp.init_to_fan_in)


def tyxe_auto_normal(model: Any) -> AutoGuide:
    return tyxe.guides.AutoNormal(model, init_loc_fn=tyxe.guides.init_to_normal_radford)


def test_the_model_with_its_likelihood() -> None:
    bnn = network(auto_normal)
    assert groups_of(pp.find_symmetry(bnn.model, X, Y)) == GROUPS


def test_the_network_alone_must_predict_the_same() -> None:
    assert groups_of(pp.find_symmetry(network(auto_normal).net, X)) == GROUPS
    wrong = pp.PermutationSymmetry({"hidden": {"net.0.weight": 0, "net.2.weight": 1}})
    with pytest.raises(pp.SymmetryVerificationError, match="site 'returned value 0' by"):
        wrong.verify(network(auto_normal).net, X)


@pytest.mark.parametrize("base", [tyxe_auto_normal, *slow(auto_normal)])
@pytest.mark.parametrize("closed_form_kl", [True, False])
def test_its_own_fit_trains_a_symmetrized_guide(
    base: Callable[..., AutoGuide], closed_form_kl: bool
) -> None:
    bnn = network(lambda model: pp.AutoSymmetrized(base(model)))
    losses = fit(bnn, closed_form_kl=closed_form_kl)
    assert losses[-5:].mean() < losses[:5].mean()
    assert groups_of(bnn.net_guide.symmetry) == GROUPS
    assert all(site.startswith("net.") for site in bnn.net_guide.symmetry.sites)
    mean, _ = bnn.predict(X, num_predictions=8)
    assert mean.shape == Y.shape


@pytest.mark.parametrize("trick", ["local_reparameterization", *slow("flipout")])
def test_reparametrizations_of_its_layers_want_unpermuted_draws(
    trick: str,
) -> None:
    handler = getattr(tyxe.poutine, trick)
    permuted = network(lambda model: pp.AutoSymmetrized(tyxe_auto_normal(model)))
    with pytest.raises(ValueError, match=r"local reparametrization and.*permute=False"), handler():
        fit(permuted)
    pyro.clear_param_store()
    bnn = network(lambda model: pp.AutoSymmetrized(tyxe_auto_normal(model), permute=False))
    with handler():
        losses = fit(bnn)
    assert losses[-5:].mean() < losses[:5].mean()
