"""Which groups are found to rescale, and by which power along which axes."""

from __future__ import annotations

import itertools
from typing import Any

import examples.networks
import examples.sequence_networks
import examples.statistical_models  # noqa: F401
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from examples.bayesian import (
    EXAMPLES,
    LARGE,
    groups_of,
    normal,
    observe,
    regression,
    scales_of,
    written,
)
from examples.rectifiers import FOUND, X, Y, functional, mlp
from marks import slow_where
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.discovery import find_symmetry
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.verification import check_groups

# Of each kind one: an activation, layers, a module with a slope of its own, a prior, pooling.
QUICK = ("relu", "two_layers", "prelu", "laplace", "average_pooling", "matrix_factorization")


@pytest.mark.parametrize("name", slow_where(lambda name: name not in QUICK, FOUND))
def test_the_degrees_are_found(name: str) -> None:
    (model, *args), expected = FOUND[name]
    symmetry = find_symmetry(model, *args, scales=True)
    assert scales_of(symmetry) == written(expected)
    checks = [c for c in check_groups(symmetry, model, *args) if c.action == "rescale"]
    assert len(checks) == len(expected)
    assert all(check.passed and (check.is_effective or check.control is None) for check in checks)


# The examples of the architecture tests, with the axes of every group that rescales. Normalization
# ends scales at its epsilon, but its gain and shift are incoming weights of what comes next.
ARCHITECTURES = {
    "mlp_sequential": ["0.weight[-2]^1 0.bias[-1]^1 2.weight[-1]^-1"],
    "mlp_einsum": ["w1[-1]^1 w2[-2]^-1", "w2[-1]^1 w3[-2]^-1"],
    "mlp_ensemble": [],
    "lenet": [
        "0.weight[-4]^1 0.bias[-1]^1 3.weight[-3]^-1",
        "3.weight[-4]^1 3.bias[-1]^1 7.weight[-1:i9]^-1",
        "7.weight[-2]^1 7.bias[-1]^1 9.weight[-1]^-1",
    ],
    "densenet": [
        "a.weight[-4]^1 a.bias[-1]^1 b.weight[-3]^-1 c.weight[-3:0..2]^-1 fc.weight[-1:0..2]^-1",
        "b.weight[-4]^1 b.bias[-1]^1 c.weight[-3:3..4]^-1 fc.weight[-1:3..4]^-1",
        "c.weight[-4]^1 c.bias[-1]^1 fc.weight[-1:5..8]^-1",
    ],
    "unet": [
        "e1.weight[-4]^1 e1.bias[-1]^1 e2.weight[-3]^-1 d1.weight[-3:0..2]^-1",
        "e2.weight[-4]^1 e2.bias[-1]^1 up.weight[-4]^-1",
        "up.weight[-3]^1 up.bias[-1]^1 d1.weight[-3:3..5]^-1",
        "d1.weight[-4]^1 d1.bias[-1]^1 out.weight[-3]^-1",
    ],
    "zero_padded_shortcut": [
        "a.weight[-4]^1 b.weight[-4:0..2]^1 fc.weight[-1:0..2]^-1",
        "b.weight[-4:3..4]^1 fc.weight[-1:3..4]^-1",
    ],
    "depthwise_convolution": [
        "0.weight[-4]^1 0.bias[-1]^1 1.bias[-1]^1 3.bias[-1:i2]^1 5.weight[-3:i2]^-1",
        "3.weight[-4:o5]^1 3.bias[-1:o5]^1 5.weight[-3:o5]^-1",
    ],
    "resnet_batch_norm": [
        "stem.weight[-4]^1 stem.bias[-1]^1 b1.n2.weight[-1]^1 b1.n2.bias[-1]^1 "
        "b1.conv1.weight[-3]^-1 b2.conv1.weight[-3]^-1 b2.down.weight[-3]^-1",
        "b1.n1.weight[-1]^1 b1.n1.bias[-1]^1 b1.conv2.weight[-3]^-1",
        "b2.n1.weight[-1]^1 b2.n1.bias[-1]^1 b2.conv2.weight[-3]^-1",
        "b2.n2.weight[-1]^1 b2.n2.bias[-1]^1 b2.down.weight[-4]^1 fc.weight[-1]^-1",
    ],
    # Running moments are no latent sites, so that channels are rescaled, but not permuted.
    "resnet_batch_norm_eval": [
        "stem.weight[-4]^1 stem.bias[-1]^1 b1.n2.weight[-1]^1 b1.n2.bias[-1]^1 "
        "b1.conv1.weight[-3]^-1 b2.conv1.weight[-3]^-1 b2.down.weight[-3]^-1 unpermuted",
        "b1.n1.weight[-1]^1 b1.n1.bias[-1]^1 b1.conv2.weight[-3]^-1 unpermuted",
        "b2.n1.weight[-1]^1 b2.n1.bias[-1]^1 b2.conv2.weight[-3]^-1 unpermuted",
        "b2.n2.weight[-1]^1 b2.n2.bias[-1]^1 b2.down.weight[-4]^1 fc.weight[-1]^-1 unpermuted",
    ],
    # Not the queries and keys, which are packed with the values.
    "transformer": [
        "enc.norm2.weight[-1]^1 enc.norm2.bias[-1]^1 out.weight[-1]^-1",
        "enc.linear1.weight[-2]^1 enc.linear1.bias[-1]^1 enc.linear2.weight[-1]^-1",
    ],
    # Queries with keys, and values with outputs, of each head by itself.
    "attention_by_hand": ["q[-1:i2]^1 k[-1:i2]^-1", "v[-1:o2]^1 o[-2:o2]^-1"],
    "tied_autoencoder": [],
    "lstm": [],
    "factor_analysis": ["loading[-1]^1 z[-1]^-1"],
    "gaussian_mixture": [],
    "hierarchical_prior": [],
    "dropout": [],
    "linear_regression": [],
}


@pytest.mark.filterwarnings("ignore:buffer .* is updated by the model")
@pytest.mark.filterwarnings("ignore:dropout at .* draws a random mask")
@pytest.mark.parametrize("name", slow_where(LARGE.__contains__, ARCHITECTURES))
def test_scales_of_architectures(name: str) -> None:
    (build,) = (example.build for example in EXAMPLES if example.name == name)
    model, *args = build()
    symmetry = find_symmetry(model, *args, scales=True)
    assert scales_of(symmetry) == written(ARCHITECTURES[name])
    for check in check_groups(symmetry, model, *args):
        assert check.passed and (check.is_effective or check.control is None)


def test_scales_are_off_unless_asked_for() -> None:
    model, x = mlp()
    plain, scaled = find_symmetry(model, x), find_symmetry(model, x, scales=True)
    assert scales_of(plain) == set() and groups_of(plain) == groups_of(scaled)
    assert not any(reason.startswith("scale of") for reason in plain.reasons)


def test_a_keyword_that_the_model_has_too_is_refused() -> None:
    def model(x: Tensor, scales: Tensor) -> None:
        observe(torch.relu(x @ normal("w1", 3, 5)) @ normal("w2", 5) * scales, Y)

    with pytest.raises(ValueError, match="both have a parameter 'scales'"):
        find_symmetry(model, X, scales=True)
    assert scales_of(find_symmetry(model, X, Y, scales=True))


def test_signs_and_scales_are_found_together() -> None:
    model, x = mlp(lambda h: h)
    symmetry = find_symmetry(model, x, signs=True, scales=True)
    assert [str(axis) for axes in symmetry.spec["P0"].values() for axis in axes] == [
        "Axis(-1, sign=True, scale=1)",
        "Axis(-1, sign=True, scale=1)",
        "Axis(-1, sign=True, scale=-1)",
    ]
    assert {c.action for c in check_groups(symmetry, model, x)} == {"permute", "flip", "rescale"}


def unequal_priors() -> tuple[Any, ...]:
    """Prior scales put the units into classes of three, two and one."""
    kinds = torch.tensor([1.0, 2.0, 1.0, 3.0, 2.0, 1.0]).double()

    def model(x: Tensor) -> None:
        w1 = pyro.sample("w1", dist.Normal(0.0, kinds).expand([3, 6]).to_event(2))
        observe(torch.relu(x @ w1) @ normal("w2", 6), Y)

    return model, X


def every_prior_another(x: Tensor) -> Tensor:
    w1 = pyro.sample("w1", dist.Normal(torch.arange(5.0), 1.0).expand([3, 5]).to_event(2))
    return torch.relu(x @ w1) @ normal("w2", 5)


def dropout(x: Tensor) -> Tensor:
    return F.dropout(torch.relu(x @ normal("w1", 3, 5)), 0.5) @ normal("w2", 5)


def position(x: Tensor) -> Tensor:
    """A constant that tells units apart, and switches the first one off altogether."""
    return torch.relu(x @ normal("w1", 3, 5)) * torch.arange(5.0) @ normal("w2", 5)


def slope_of_each_unit() -> tuple[Any, ...]:
    net = nn.Sequential(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 1))
    return regression(net, torch.randn(5, 3), keep=["1.weight"])


UNPERMUTED: dict[str, tuple[tuple[Any, ...], list[str]]] = {
    "unequal_priors": (
        unequal_priors(),
        [
            "w1[-1:0,2,5]^1 w2[-1:0,2,5]^-1",
            "w1[-1:1,4]^1 w2[-1:1,4]^-1",
            "w1[-1:3..3]^1 w2[-1:3..3]^-1 unpermuted",
        ],
    ),
    "every_prior_another": (
        functional(every_prior_another),
        ["w1[-1]^1 w2[-1]^-1 unpermuted"],
    ),
    "dropout": (functional(dropout), ["w1[-1]^1 w2[-1]^-1 unpermuted"]),
    "position": (
        functional(position),
        ["w1[-1:1..4]^1 w2[-1:1..4]^-1 unpermuted", "w1[-1:0..0]^1 unpermuted"],
    ),
    "slope_of_each_unit": (
        slope_of_each_unit(),
        ["0.weight[-2]^1 0.bias[-1]^1 2.weight[-1]^-1 unpermuted"],
    ),
}


@pytest.mark.filterwarnings("ignore:dropout at .* draws a random mask")
@pytest.mark.parametrize("name", UNPERMUTED)
def test_units_that_are_not_permuted_are_rescaled(name: str) -> None:
    (model, *args), expected = UNPERMUTED[name]
    symmetry = find_symmetry(model, *args, scales=True)
    assert scales_of(symmetry) == written(expected)
    checks = check_groups(symmetry, model, *args)
    assert sum(check.action == "rescale" for check in checks) == len(expected)
    assert all(check.passed and (check.is_effective or check.control is None) for check in checks)


def test_scales_of_hierarchical_priors_leave_the_hyperparameters_alone() -> None:
    def network(x: Tensor) -> Tensor:
        tau = pyro.sample("tau", dist.HalfCauchy(1.0).expand([5]).to_event(1))
        mean = normal("mean", 5)
        w1 = pyro.sample("w1", dist.Normal(mean, tau).expand([3, 5]).to_event(2))
        return torch.relu(x @ w1) @ normal("w2", 5)

    model, x = functional(network)
    symmetry = find_symmetry(model, x, scales=True)
    assert groups_of(symmetry) == written(["tau[-1] mean[-1] w1[-1] w2[-1]"])
    assert scales_of(symmetry) == written(["w1[-1]^1 w2[-1]^-1"])


def test_weights_of_the_mean_of_another_latent_site_are_rescaled() -> None:
    """That site stays: its prior must not change, as the likelihood must not."""

    def model(x: Tensor) -> None:
        mean = torch.relu(x @ normal("w1", 3, 5)) @ normal("w2", 5)
        z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
        observe(z, Y)

    symmetry = find_symmetry(model, X, scales=True)
    assert scales_of(symmetry) == written(["w1[-1]^1 w2[-1]^-1"])


def test_a_plain_network_has_scales() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    symmetry = find_symmetry(net, torch.randn(4, 3), scales=True)
    assert scales_of(symmetry) == written(["0.weight[-2]^1 0.bias[-1]^1 2.weight[-1]^-1"])


DEGREES = (-1, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [torch.relu, torch.tanh, torch.abs])
def test_scales_are_found_where_an_exhaustive_search_finds_some(activation: Any) -> None:
    model, *args = mlp(activation)
    symmetry = find_symmetry(model, *args, scales=True)
    valid = []
    for degrees in itertools.product(DEGREES, repeat=3):
        if degrees <= (0, 0, 0):
            continue  # The inverse of another, or no scale at all.
        axes = {s: pp.Axis(-1, scale=k) for s, k in zip(("w1", "b1", "w2"), degrees, strict=True)}
        variant = PermutationSymmetry({"P0": axes})
        if all(check.passed for check in check_groups(variant, model, *args)):
            valid.append(variant.spec)
    assert valid == ([symmetry.spec] if scales_of(symmetry) else [])
