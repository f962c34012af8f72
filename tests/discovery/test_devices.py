"""The analysis makes no tensor on the default device: not even where that is another one."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import groups_of, written
from pyro.infer import config_enumerate
from torch import Tensor

from pyro_perm.discovery import find, find_symmetry


def on(device: str, *shape: int) -> Tensor:
    return torch.zeros(shape, device=device)


def sample(name: str, device: str, *shape: int) -> Tensor:
    prior = dist.Normal(on(device, *shape), on(device, *shape) + 1.0)
    return pyro.sample(name, prior.to_event(len(shape)))


def network(x: Tensor) -> None:
    """With constants by value, an identity, a write through a view, and a prior to be tested."""
    device = str(x.device)
    scale = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0], device=device)
    w1 = sample("w1", device, 3, 5)
    w2 = pyro.sample("w2", dist.Normal(on(device, 5), scale).to_event(1))
    covariance = 0.5 * torch.eye(4, device=device) + 0.5
    w3 = pyro.sample("w3", dist.MultivariateNormal(on(device, 4), covariance))
    h = torch.zeros((len(x), 9), device=device)
    h[:, :5] = torch.tanh(x @ w1) * w2
    h[:, 5:] = torch.relu(x[:, :1] * w3)
    metric = w1.T @ w1 + torch.eye(5, device=device)
    pyro.factor("metric", -metric.square().sum())
    with pyro.plate("data", len(x)):
        mean = h[torch.arange(len(x), device=device)].sum(-1)
        pyro.sample("y", dist.Normal(mean, torch.ones_like(mean)), obs=x[:, 0])


@config_enumerate
def mixture(x: Tensor) -> None:
    device = str(x.device)
    weights = pyro.sample("weights", dist.Dirichlet(on(device, 3) + 1.0))
    loc = sample("loc", device, 3)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], torch.ones((), device=device)), obs=x[:, 0])


GROUPS = {
    network: ["w1[-1:0..1] w2[-1:0..1]", "w1[-1:2..4] w2[-1:2..4]", "w3[-1]"],
    mixture: ["weights[-1] loc[-1]"],
}


@pytest.fixture
def other_default() -> Iterator[None]:
    """Whoever makes a tensor without naming its device gets one without entries."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("model", GROUPS)
def test_the_default_device_does_not_matter(
    model: object, other_default: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "confirm", lambda *args, **kwargs: None)
    assert groups_of(find_symmetry(model, on("cpu", 4, 3))) == written(GROUPS[model])


def rectifiers(x: Tensor) -> None:
    """Units that flip and rescale, units that only rescale, and a prior that is asked."""
    device = str(x.device)
    loc = torch.arange(5.0, device=device)
    w1 = pyro.sample("w1", dist.Normal(loc, torch.ones_like(loc)).expand([3, 5]).to_event(2))
    h = torch.relu(x @ w1) @ sample("w2", device, 5, 4)
    mean = h.abs() @ sample("w3", device, 4)
    pyro.sample("y", dist.Normal(mean, torch.ones_like(mean)).to_event(1), obs=x[:, 0])


def found_with_degrees(device: str) -> str:
    return repr(find_symmetry(rectifiers, on(device, 4, 3), signs=True, scales=True))


def test_the_default_device_does_not_matter_to_degrees(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = found_with_degrees("cpu")
    assert "sign=True" in expected and "permute=False" in expected
    monkeypatch.setattr(find, "confirm", lambda *args, **kwargs: None)
    request.getfixturevalue("other_default")
    assert found_with_degrees("cpu") == expected


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_degrees_on_a_cuda_device() -> None:
    assert found_with_degrees("cuda") == found_with_degrees("cpu")


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("model", GROUPS)
def test_models_on_a_cuda_device(model: object) -> None:
    assert groups_of(find_symmetry(model, on("cuda", 4, 3))) == written(GROUPS[model])
