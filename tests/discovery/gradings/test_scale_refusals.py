"""What ends scales, and in which words."""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from examples.bayesian import normal, observe, scales_of
from examples.rectifiers import X, Y, ensemble, functional, mlp
from marks import slow_where
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from pyro_perm.discovery import find_symmetry
from pyro_perm.discovery.gradings.rules import SCALES
from pyro_perm.discovery.gradings.rules.pointwise import homogeneous
from pyro_perm.verification import SymmetryVerificationError


def tied_autoencoder(x: Tensor) -> Tensor:
    """The weights are incoming and outgoing at once."""
    w = normal("w", 3, 5)
    return (torch.relu(x @ w + normal("b", 5)) @ w.T).sum(-1)


def mixed(x: Tensor) -> Tensor:
    h = x @ normal("w1", 3, 5)
    return torch.cat([h.relu(), h.tanh()], 1).sum(1) + normal("b", 1)


def biased_after_all(x: Tensor) -> Tensor:
    return torch.relu(x @ normal("w1", 3, 5) + 0.1) @ normal("w2", 5)


def limited_zeros(x: Tensor) -> Tensor:
    """What is always zero has any degree, but a half has not."""
    h = torch.relu(x @ normal("w1", 3, 5))
    return (h + (0.0 * h).clamp(min=0.5)) @ normal("w2", 5)


def layer_normalized(x: Tensor) -> Tensor:
    return F.layer_norm(x @ normal("w1", 3, 5), [5]) @ normal("w2", 5)


def rms_normalized(x: Tensor) -> Tensor:
    h = x @ normal("w1", 3, 5)
    return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() @ normal("w2", 5)


def logarithm(x: Tensor) -> Tensor:
    return (x @ normal("w1", 3, 5)).square().add(0).log() @ normal("w2", 5)


def softmax(x: Tensor) -> Tensor:
    return (x @ normal("w1", 3, 5)).softmax(-1) @ normal("w2", 5)


def branch(x: Tensor) -> Tensor:
    h = torch.relu(x @ normal("w1", 3, 5))
    return (h if float(h.sum()) > -1.0 else -h) @ normal("w2", 5)


def correlated_prior(x: Tensor) -> Tensor:
    covariance = 0.5 * torch.eye(5) + 0.5
    w2 = pyro.sample("w2", dist.MultivariateNormal(torch.zeros(5), covariance))
    return torch.relu(x @ normal("w1", 3, 5)) @ w2


def masked_prior(x: Tensor) -> Tensor:
    with poutine.mask(mask=False):
        w2 = normal("w2", 5)
    return torch.relu(x @ normal("w1", 3, 5)) @ w2


def prior_of_the_other_layer(x: Tensor) -> Tensor:
    w1 = normal("w1", 3, 5)
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0 + w1.square().sum(0)).to_event(1))
    return torch.relu(x @ w1) @ w2


@config_enumerate
def spike_and_slab(x: Tensor) -> None:
    w1 = normal("w1", 3, 5)
    with pyro.plate("units", 5):
        is_slab = pyro.sample("is_slab", dist.Bernoulli(0.5))
        w2 = pyro.sample("w2", dist.Normal(0.0, 0.1 + is_slab))
    observe(torch.relu(x @ w1) @ w2, Y)


def prior_only() -> None:
    normal("w", 3)


REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tanh": (mlp(torch.tanh), r"aten.tanh is not homogeneous \(rectifiers.py:\d+\)"),
    "sigmoid": (mlp(torch.sigmoid), "aten.sigmoid is not homogeneous"),
    "gelu": (mlp(F.gelu), "aten.gelu is not homogeneous"),
    "softplus": (mlp(F.softplus), "aten.softplus is not homogeneous"),
    "elu": (mlp(F.elu), "aten.elu is not homogeneous"),
    "relu6": (mlp(F.relu6), "aten.hardtanh has a limit that does not scale"),
    "clamp": (mlp(lambda h: h.clamp(-1.0, 1.0)), "aten.clamp has a limit that does not scale"),
    "to_integers": (mlp(lambda h: h.long().double()), "aten._to_copy rounds"),
    "exponent": (mlp(lambda h: h.abs() ** 2**0.5), "aten.pow has an exponent of 1.414"),
    "compared_with_one": (mlp(lambda h: h * (h > 1)), "aten.gt mixes what scales differently"),
    "softmax": (functional(softmax), "aten._softmax is not homogeneous"),
    "logarithm": (functional(logarithm), "aten.log is not homogeneous"),
    "layer_norm": (functional(layer_normalized), "aten.native_layer_norm adds an epsilon"),
    "rms_norm": (functional(rms_normalized), "aten.mean mixes what scales differently"),
    "constant_bias": (functional(biased_after_all), "aten.add mixes what scales differently"),
    "limited_zeros": (functional(limited_zeros), "aten.add mixes what scales differently"),
    "mixed_segments": (functional(mixed), "aten.tanh is not homogeneous"),
    "tied": (functional(tied_autoencoder), "aten.mm mixes what scales differently"),
    "branch": (functional(branch), "aten.sum mixes what scales differently"),
    "positive_weights": (
        mlp(w2=lambda: dist.HalfNormal(1.0)),
        "site 'w2' does not have the whole real line as its support",
    ),
    "correlated": (functional(correlated_prior), "the prior of site 'w2' couples its entries"),
    "masked": (functional(masked_prior), "the prior of site 'w2' is no density on the whole"),
    "fed": (functional(prior_of_the_other_layer), "site 'w1' feeds the prior of site 'w2'"),
    "enumerated": (
        (spike_and_slab, X),
        "the prior of site 'w2' depends on an enumerated variable",
    ),
}


QUICK = ("tanh", "clamp", "softmax", "constant_bias", "tied", "correlated", "enumerated")


@pytest.mark.filterwarnings("ignore:the model reads a value")
@pytest.mark.parametrize("name", slow_where(lambda name: name not in QUICK, REFUSED))
def test_refusals_name_the_cause(name: str) -> None:
    (model, *args), reason = REFUSED[name]
    symmetry = find_symmetry(model, *args, scales=True)
    assert symmetry and scales_of(symmetry) == set()
    why = symmetry.reasons["scale of P0"]
    assert re.search(reason, why), why
    assert f"scale of P0 is fixed: {why}" in " ".join(symmetry.summary().split())


def test_groups_whose_scales_depend_on_those_of_others_say_so() -> None:
    model, x = functional(ensemble)
    symmetry = find_symmetry(model, x, scales=True)
    assert set(symmetry.groups.values()) == {4, 5}
    (why,) = (why for axis, why in symmetry.reasons.items() if axis.startswith("scale of"))
    assert why == "rescaling all of its units alike does nothing that other groups' scales do not"


def test_a_model_that_observes_nothing_has_no_scales() -> None:
    with pytest.warns(UserWarning, match="the model observes nothing"):
        symmetry = find_symmetry(prior_only, scales=True)
    assert symmetry.reasons["scale of P0"] == "the model observes nothing"


def test_a_wrong_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES._table, "aten.tanh.default", homogeneous)
    model, x = mlp(torch.tanh)
    with pytest.raises(SymmetryVerificationError, match="rescaling the units of group 'P0'"):
        find_symmetry(model, x, scales=True)
