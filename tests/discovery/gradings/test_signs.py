"""Which groups are found to flip signs, along which axes, and why the others are not."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import examples.networks
import examples.sequence_networks
import examples.statistical_models  # noqa: F401
import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import EXAMPLES, LARGE, groups_of, normal, observe, regression, written
from examples.rectifiers import matrix_factorization
from marks import slow, slow_where
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.discovery import find_symmetry
from pyro_perm.discovery.gradings.rules import SIGNS
from pyro_perm.discovery.gradings.rules.pointwise import odd
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.verification import SymmetryVerificationError, check_groups

X, Y = torch.linspace(-1, 1, 12).view(4, 3).double(), torch.linspace(0, 1, 4).double()


def signs_of(symmetry: PermutationSymmetry) -> set[frozenset[str]]:
    """The axes that flip, group by group, as :func:`groups_of` writes them."""
    flipping = {
        group: {
            site: kept
            for site, axes in symmetry.spec[group].items()
            if (kept := [axis for axis in axes if axis.sign])
        }
        for group in symmetry.signed_groups
    }
    return groups_of(PermutationSymmetry(flipping))


def of(module: nn.Module, *shape: int) -> tuple[Any, ...]:
    return regression(module, torch.randn(5, *shape))


def mlp(
    activation: Callable[[Tensor], Tensor] = torch.tanh, loc: float = 0.0, layers: int = 1
) -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        h = x
        for layer in range(layers):
            prior = dist.Normal(loc, 1.0).expand([h.shape[-1], 3]).to_event(2)
            h = activation(h @ pyro.sample(f"w{layer}", prior) + normal(f"b{layer}", 3))
        observe(h @ normal("out", 3), Y)

    return model, X


def siren() -> tuple[Any, ...]:
    """Sitzmann et al. (2020): sines, the first of a high frequency."""

    def model(x: Tensor) -> None:
        h = torch.sin(30.0 * (x @ normal("w0", 3, 4) + normal("b0", 4)))
        h = torch.sin(h @ normal("w1", 4, 3) + normal("b1", 3))
        observe(h @ normal("w2", 3), Y)

    return model, X


def factor_analysis() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        loading, mean = normal("loading", 2, 3), normal("mean", 3)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z @ loading + mean, 1.0).to_event(1), obs=x)

    return model, X


def hierarchical() -> tuple[Any, ...]:
    """Means and scales of the weights are latent: means flip with them, scales do not."""

    def model(x: Tensor) -> None:
        mean = normal("mean", 3)
        scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
        w = pyro.sample("w", dist.Normal(mean, scale).expand([3, 3]).to_event(2))
        observe(torch.tanh(x @ w) @ normal("out", 3), Y)

    return model, X


def lenet() -> tuple[Any, ...]:
    conv = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2))
    return of(
        nn.Sequential(conv, nn.Flatten(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 1)), 1, 4, 4
    )


def recurrent() -> tuple[Any, ...]:
    """A cell, unrolled by hand from a zero state."""

    def model(x: Tensor) -> None:
        w, u = normal("w", 1, 3), normal("u", 3, 3)
        h = torch.zeros(len(x), 3)
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t : t + 1] @ w + h @ u)
        observe(h @ normal("out", 3), Y)

    return model, X


def second_layer_only() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        h = torch.relu(x @ normal("w0", 3, 2))
        observe(torch.tanh(h @ normal("w1", 2, 3)) @ normal("w2", 3), Y)

    return model, X


FOUND = {
    "one_layer": (mlp(), ["w0[-1] b0[-1] out[-1]"]),
    "two_layers": (mlp(layers=2), ["w0[-1] b0[-1] w1[-2]", "w1[-1] b1[-1] out[-1]"]),
    "three_layers": (
        mlp(layers=3),
        ["w0[-1] b0[-1] w1[-2]", "w1[-1] b1[-1] w2[-2]", "w2[-1] b2[-1] out[-1]"],
    ),
    "arcus_tangent": (mlp(torch.atan), ["w0[-1] b0[-1] out[-1]"]),
    "softsign": (mlp(nn.functional.softsign), ["w0[-1] b0[-1] out[-1]"]),
    "hardtanh": (mlp(nn.functional.hardtanh), ["w0[-1] b0[-1] out[-1]"]),
    "cube": (mlp(lambda h: h**3), ["w0[-1] b0[-1] out[-1]"]),
    "even": (mlp(torch.cos), ["w0[-1] b0[-1]"]),
    "linear": (mlp(lambda h: h), ["w0[-1] b0[-1] out[-1]"]),
    "siren": (siren(), ["w0[-1] b0[-1] w1[-2]", "w1[-1] b1[-1] w2[-1]"]),
    "factor_analysis": (factor_analysis(), ["loading[-2] z[-1]"]),
    "matrix_factorization": (matrix_factorization(), ["u[-1] v[-1]"]),
    "hierarchical": (hierarchical(), ["mean[-1] w[-1] out[-1]"]),
    "lenet": (
        lenet(),
        ["0.0.weight[-4] 0.0.bias[-1] 2.weight[-1:i4]", "2.weight[-2] 2.bias[-1] 4.weight[-1]"],
    ),
    "recurrent": (recurrent(), ["w[-1] u[-2] u[-1] out[-1]"]),
    "second_layer_only": (second_layer_only(), ["w1[-1] w2[-1]"]),
}


QUICK = ("one_layer", "two_layers", "even", "factor_analysis", "recurrent")


@pytest.mark.parametrize("name", slow_where(lambda name: name not in QUICK, FOUND))
def test_the_axes_that_flip_are_found(name: str) -> None:
    (model, *args), expected = FOUND[name]
    symmetry = find_symmetry(model, *args, signs=True)
    assert signs_of(symmetry) == written(expected)
    checks = check_groups(symmetry, model, *args)
    assert sum(check.action == "flip" for check in checks) == len(expected)
    assert all(check.passed and check.is_effective for check in checks)


# The examples of the architecture tests, with the axes of every group that flips.
ARCHITECTURES = {
    "mlp_sequential": ["2.weight[-2] 2.bias[-1] 4.weight[-1]"],
    "rnn": [
        "rnn.weight_ih_l0[-2] rnn.weight_hh_l0[-2] rnn.weight_hh_l0[-1] rnn.bias_ih_l0[-1] "
        "rnn.bias_hh_l0[-1] out.weight[-1]"
    ],
    "lstm": [],
    "gru": [],
    "lenet": [],
    "resnet_batch_norm_eval": [],
    "mlp_in_plates": ["w1[-2] w2[-2]"],
    "factor_analysis": ["loading[-1] z[-1]"],
    "hierarchical_prior": ["w1[-1] w2[-1]"],
    "colours": ["w1[-1:0..2] w2[-1:0..2]", "w1[-1:3,5] w2[-1:3,5]"],
    "identity_constant_ties": ["w1[-1] w2[-1]"],
    "gaussian_mixture": [],
    "hidden_markov_enumerated": [],
    "transformer": [
        "enc.self_attn.in_proj_weight[-2:o3,i4] enc.self_attn.in_proj_bias[-1:o3,i4] "
        "enc.self_attn.out_proj.weight[-1:i4]",
        "enc.self_attn.in_proj_weight[-2:o6] enc.self_attn.in_proj_bias[-1:o6] "
        "enc.self_attn.out_proj.weight[-1:o2]",
    ],
    # The gain of a normalization makes up for the sign of the channel that it normalizes.
    "resnet_batch_norm": [
        "b1.conv2.weight[-4] b1.n2.weight[-1]",
        "b1.conv1.weight[-4] b1.n1.weight[-1]",
        "b2.conv1.weight[-4] b2.n1.weight[-1]",
        "b2.conv2.weight[-4] b2.n2.weight[-1]",
    ],
}


@pytest.mark.filterwarnings("ignore:buffer .* is updated by the model")
@pytest.mark.parametrize("name", slow_where(LARGE.__contains__, ARCHITECTURES))
def test_signs_of_architectures(name: str) -> None:
    (build,) = (example.build for example in EXAMPLES if example.name == name)
    model, *args = build()
    symmetry = find_symmetry(model, *args, signs=True)
    assert signs_of(symmetry) == written(ARCHITECTURES[name])
    assert all(check.passed for check in check_groups(symmetry, model, *args))


def test_signs_are_off_unless_asked_for() -> None:
    model, x = mlp()
    symmetry, signed = find_symmetry(model, x), find_symmetry(model, x, signs=True)
    assert symmetry.signed_groups == () and signed.signed_groups == ("P0",)
    assert groups_of(symmetry) == groups_of(signed)
    assert not any(reason.startswith("sign of") for reason in symmetry.reasons)


class Softmax(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.softmax(-1)


def no_real_site() -> tuple[Any, ...]:
    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, torch.ones(3)).to_event(1))
        pyro.factor("f", -rate.square().sum())

    return (model,)


def coin_of_the_model() -> tuple[Any, ...]:
    def model() -> None:
        pyro.factor("f", normal("w", 3).sum())

    return (model,)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: mlp(torch.relu), r"aten.relu is neither odd nor even \(test_signs.py:"),
        (lambda: mlp(torch.sigmoid), "aten.sigmoid is neither"),
        (lambda: mlp(nn.functional.gelu), "aten.gelu is neither"),
        (lambda: mlp(nn.functional.leaky_relu), "aten.leaky_relu is neither"),
        (lambda: mlp(lambda h: h.clamp(-1.0, 2.0)), "aten.clamp is neither"),
        (lambda: mlp(lambda h: 2.0**h), "aten.pow is neither"),
        (
            lambda: mlp(lambda h: torch.tanh(h + 1.0)),
            "aten.add mixes what flips with what does not",
        ),
        (lambda: mlp(loc=0.5), r"aten.sub mixes what flips .* \(log_prob of site 'w0'\)"),
        (lambda: of(nn.Sequential(nn.Linear(2, 3), Softmax(), nn.Linear(3, 1)), 2), "_softmax"),
        (no_real_site, "no site of the group has the whole real line as its support"),
        (coin_of_the_model, "aten.sum mixes what flips with what does not"),
    ],
)
def test_refusals_name_the_cause(build: Callable[[], tuple[Any, ...]], reason: str) -> None:
    torch.manual_seed(0)
    model, *args = build()
    symmetry = find_symmetry(model, *args, signs=True)
    assert list(symmetry.groups.values()) == [3] and not symmetry.signed_groups
    (why,) = (why for axis, why in symmetry.reasons.items() if axis == "sign of P0")
    assert re.search(reason, why)
    assert f"sign of P0 is fixed: {why}" in " ".join(symmetry.summary().split())


def test_zeros_that_may_be_data_are_numbers() -> None:
    """Half a weight in place of the zero would break the symmetry."""

    def model(x: Tensor, weights: list[float]) -> None:
        weight = torch.tensor(weights).unsqueeze(-1)
        h = torch.tanh(x @ normal("w1", 3, 5)) * weight + (1 - weight)
        observe(h @ normal("w2", 5), Y)

    symmetry = find_symmetry(model, X, [0.0, 1.0, 1.0, 1.0], signs=True)
    assert symmetry.reasons["sign of P0"].startswith("aten.add mixes what flips")


def signed_variants(symmetry: PermutationSymmetry, group: str) -> list[PermutationSymmetry]:
    """All ways to put signs on the axes of a group."""
    axes = [(site, axis) for site, each in symmetry.spec[group].items() for axis in each]
    variants = []
    for bits in itertools.product([False, True], repeat=len(axes)):
        sites: dict[str, list[Any]] = {}
        for (site, axis), sign in zip(axes, bits, strict=True):
            sites.setdefault(site, []).append(replace(axis, sign=sign))
        if any(bits):
            variants.append(PermutationSymmetry({group: sites}))
    return variants


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        *(lambda f=f: mlp(f) for f in (torch.relu, torch.tanh)),
        *slow(
            *(lambda f=f: mlp(f) for f in (torch.cos, torch.erf, torch.exp)),
            *(lambda f=f: mlp(f) for f in (lambda h: h * h.abs(), lambda h: h * torch.tanh(h))),
            lambda: mlp(loc=0.5),
            recurrent,
            hierarchical,
        ),
        factor_analysis,
    ],
)
def test_signs_are_found_where_an_exhaustive_search_finds_some(build: Any) -> None:
    model, *args = build()
    symmetry = find_symmetry(model, *args, signs=True)
    (group,) = symmetry.groups
    valid = [
        variant.spec
        for variant in signed_variants(symmetry, group)
        if all(check.passed for check in check_groups(variant, model, *args))
    ]
    assert bool(valid) == bool(symmetry.signed_groups)
    assert not valid or symmetry.spec in valid


def test_a_wrong_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIGNS._table, "aten.relu.default", odd)
    model, x = mlp(torch.relu)
    with pytest.raises(SymmetryVerificationError, match="flipping a unit of group 'P0'"):
        find_symmetry(model, x, signs=True)


@pytest.mark.slow
def test_a_found_signed_symmetry_trains() -> None:
    model, *args = siren()
    symmetry = find_symmetry(model, *args, signs=True)
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in), symmetry)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    losses = [svi.step(*args) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert guide.symmetry.log_order == pytest.approx(symmetry.log_order)
