"""Which groups are found to rescale, by which power along which axes, and what ends the others."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import examples.networks
import examples.sequence_networks
import examples.statistical_models  # noqa: F401
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from examples.bayesian import EXAMPLES, groups_of, normal, observe, regression, scales_of, written
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.discovery import find_symmetry
from pyro_perm.discovery.gradings.rules import SCALES
from pyro_perm.discovery.gradings.rules.pointwise import homogeneous
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.verification import SymmetryVerificationError, check_groups

X, Y = torch.linspace(-1, 1, 12).view(4, 3).double(), torch.linspace(0, 1, 4).double()
HIDDEN = "w1[-1]^1 b1[-1]^1 w2[-1]^-1"


def of(module: nn.Module, *shape: int) -> tuple[Any, ...]:
    return regression(module, torch.randn(5, *shape))


def mlp(
    activation: Callable[[Tensor], Tensor] = torch.relu, **priors: Callable[[], Any]
) -> tuple[Any, ...]:
    """One hidden layer of five units."""

    def sample(name: str, *shape: int) -> Tensor:
        prior = priors.get(name, lambda: dist.Normal(0.0, 1.0))()
        return pyro.sample(name, prior.expand(shape).to_event(len(shape)))

    def model(x: Tensor) -> None:
        h = activation(x @ sample("w1", 3, 5) + sample("b1", 5))
        observe(h @ sample("w2", 5), Y)

    return model, X


def functional(network: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """A network without a class, which samples its weights as it goes."""

    def model(x: Tensor) -> None:
        observe(network(x), Y)

    return model, X


def two_by_two_relu(x: Tensor) -> Tensor:
    h = F.linear(x, normal("w1", 5, 3), normal("b1", 5)).relu_()
    h = torch.einsum("ni,oi->no", h, normal("w2", 2, 5)).relu()
    return h @ normal("w3", 2)


def bias_folded_in(x: Tensor) -> Tensor:
    h = torch.relu(F.pad(x, (0, 1), value=1.0) @ normal("w1", 4, 5))
    return torch.cat([h, torch.ones(len(x), 1)], 1) @ normal("w2", 6)


def output_used_first(x: Tensor) -> Tensor:
    """The sites are sampled in another order than they are used in."""
    w2, w1 = normal("w2", 5), normal("w1", 3, 5)
    return torch.relu(x @ w1) @ w2


def ensemble(x: Tensor) -> Tensor:
    """Rescaling all members is rescaling all units: the members' four scales are left out."""
    h = torch.matmul(x, normal("w1", 4, 3, 5)).relu()
    return torch.bmm(h, normal("w2", 4, 5, 1)).mean(0).squeeze(-1)


def in_plates(x: Tensor) -> Tensor:
    with pyro.plate("in", 3, dim=-1), pyro.plate("hidden", 5, dim=-2):
        w1 = pyro.sample("w1", dist.Normal(0.0, 1.0))
    with pyro.plate("hidden_too", 5, dim=-1):
        w2 = pyro.sample("w2", dist.Normal(0.0, 1.0))
    return torch.relu(x @ w1.T) @ w2


def autoencoder() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        code = torch.relu(x @ normal("encoder", 3, 2) + normal("bias", 2))
        observe(code @ normal("decoder", 2, 3), x)

    return model, X


def matrix_factorization() -> tuple[Any, ...]:
    def model(rows: Tensor, columns: Tensor) -> None:
        u, v = normal("u", 5, 2), normal("v", 4, 2)
        observe((u[rows] * v[columns]).sum(-1), Y)

    return model, torch.tensor([0, 4, 2, 2]), torch.tensor([3, 1, 1, 0])


def recurrent(x: Tensor) -> Tensor:
    """A cell of rectifiers, unrolled by hand from a zero state."""
    w, u = normal("w", 1, 3), normal("u", 3, 3)
    h = torch.zeros(len(x), 3)
    for t in range(x.shape[1]):
        h = torch.relu(x[:, t : t + 1] @ w + h @ u)
    return h @ normal("out", 3)


def residual(x: Tensor) -> Tensor:
    """The skip connection ties the two halves of a stream; each block has units of its own."""
    h = x @ normal("stem", 3, 4)
    for k in range(2):
        h = h + torch.relu(h @ normal(f"in{k}", 4, 5) + normal(f"b{k}", 5)) @ normal(
            f"out{k}", 5, 4
        )
    return h @ normal("head", 4)


def gated(x: Tensor) -> Tensor:
    """Of the two scales of a unit the first is taken."""
    return (torch.relu(x @ normal("gate", 3, 5)) * (x @ normal("value", 3, 5))) @ normal("out", 5)


def squared(x: Tensor) -> Tensor:
    return torch.relu(x @ normal("w1", 3, 5)).square() @ normal("w2", 5)


def root(x: Tensor) -> Tensor:
    return (x @ normal("w1", 3, 5)).square().sum(0).sqrt().sqrt() @ normal("w2", 5) + x[:, 0]


def divided(x: Tensor) -> Tensor:
    return torch.relu(x @ normal("w1", 3, 5)) / normal("w2", 5) @ torch.ones(5)


def weight_normalized(x: Tensor) -> Tensor:
    """The directions could be rescaled by themselves, but a unit has one scale only."""
    v, g = normal("v", 3, 5), normal("g", 5)
    return torch.relu(x @ (v / v.norm(dim=0) * g)) @ normal("w2", 5)


def concatenated(x: Tensor) -> Tensor:
    h = x @ normal("w1", 3, 5)
    return torch.cat([h.relu(), (-h).relu(), 0.5 * h.abs()], 1) @ normal("w2", 15)


def max_out(x: Tensor) -> Tensor:
    return (x @ normal("w1", 3, 10)).view(-1, 5, 2).amax(-1) @ normal("w2", 5)


def masked_pooling(x: Tensor) -> Tensor:
    """Minus infinity is left alone by every scale."""
    h = (x @ normal("w1", 3, 10)).view(-1, 5, 2)
    h = h.masked_fill(torch.tensor([True, False]), -float("inf"))
    return h.max(-1)[0] @ normal("w2", 5)


def deterministic(x: Tensor) -> Tensor:
    h = pyro.deterministic("h", torch.relu(x @ normal("w1", 3, 5)))
    return h @ normal("w2", 5)


def conv(pool: nn.Module, features: int) -> tuple[Any, ...]:
    first = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), pool, nn.Flatten())
    return of(
        nn.Sequential(*first, nn.Linear(features, 3), nn.LeakyReLU(), nn.Linear(3, 1)), 1, 4, 4
    )


def channels(places: int) -> list[str]:
    return [
        f"0.weight[-4]^1 0.bias[-1]^1 4.weight[-1{f':i{places}' if places > 1 else ''}]^-1",
        "4.weight[-2]^1 4.bias[-1]^1 6.weight[-1]^-1",
    ]


FOUND: dict[str, tuple[tuple[Any, ...], list[str]]] = {
    "relu": (mlp(), [HIDDEN]),
    "leaky_relu": (mlp(F.leaky_relu), [HIDDEN]),
    "abs": (mlp(torch.abs), [HIDDEN]),
    "linear": (mlp(lambda h: h), [HIDDEN]),
    "clamp": (mlp(lambda h: h.clamp(min=0.0)), [HIDDEN]),
    "threshold": (mlp(lambda h: F.threshold(h, 0.0, 0.0)), [HIDDEN]),
    "maximum": (mlp(lambda h: torch.maximum(h, 0.1 * h)), [HIDDEN]),
    "where": (mlp(lambda h: torch.where(h > 0, h, 0.1 * h)), [HIDDEN]),
    "times_a_mask": (mlp(lambda h: h * (h > 0)), [HIDDEN]),
    "prelu": (
        of(nn.Sequential(nn.Linear(3, 5), nn.PReLU(), nn.Linear(5, 1)), 3),
        ["0.weight[-2]^1 0.bias[-1]^1 2.weight[-1]^-1"],
    ),
    "laplace": (mlp(w1=lambda: dist.Laplace(0.0, 1.0)), [HIDDEN]),
    "student": (mlp(w2=lambda: dist.StudentT(3.0)), [HIDDEN]),
    "cauchy": (mlp(b1=lambda: dist.Cauchy(0.0, 1.0)), [HIDDEN]),
    "not_centred": (mlp(w1=lambda: dist.Normal(2.0, 1.0)), [HIDDEN]),
    "two_layers": (
        functional(two_by_two_relu),
        ["w1[-2]^1 b1[-1]^1 w2[-1]^-1", "w2[-2]^1 w3[-1]^-1"],
    ),
    "bias_folded_in": (functional(bias_folded_in), ["w1[-1]^1 w2[-1:0..4]^-1"]),
    "output_used_first": (functional(output_used_first), ["w1[-1]^1 w2[-1]^-1"]),
    "ensemble": (functional(ensemble), ["w1[-1]^1 w2[-2]^-1"]),
    "in_plates": (functional(in_plates), ["w1[-2]^1 w2[-1]^-1"]),
    "autoencoder": (autoencoder(), ["encoder[-1]^1 bias[-1]^1 decoder[-2]^-1"]),
    "matrix_factorization": (matrix_factorization(), ["u[-1]^1 v[-1]^-1"]),
    "recurrent": (functional(recurrent), ["w[-1]^1 u[-2]^-1 u[-1]^1 out[-1]^-1"]),
    "residual": (
        functional(residual),
        [
            "stem[-1]^1 in0[-2]^-1 out0[-1]^1 in1[-2]^-1 out1[-1]^1 head[-1]^-1",
            "in0[-1]^1 b0[-1]^1 out0[-2]^-1",
            "in1[-1]^1 b1[-1]^1 out1[-2]^-1",
        ],
    ),
    "gated": (functional(gated), ["gate[-1]^1 out[-1]^-1"]),
    "squared": (functional(squared), ["w1[-1]^1 w2[-1]^-2"]),
    "root": (functional(root), ["w1[-1]^2 w2[-1]^-1"]),
    "divided": (functional(divided), ["w1[-1]^1 w2[-1]^1"]),
    "weight_normalized": (functional(weight_normalized), ["g[-1]^1 w2[-1]^-1"]),
    "concatenated": (functional(concatenated), ["w1[-1]^1 w2[-1:o3]^-1"]),
    "max_out": (functional(max_out), ["w1[-1:i2]^1 w2[-1]^-1"]),
    "masked_pooling": (functional(masked_pooling), ["w1[-1:i2]^1 w2[-1]^-1"]),
    "deterministic": (functional(deterministic), ["w1[-1]^1 w2[-1]^-1"]),
    "max_pooling": (conv(nn.MaxPool2d(2), 8), channels(4)),
    "average_pooling": (conv(nn.AvgPool2d(2), 8), channels(4)),
    "adaptive_average": (conv(nn.AdaptiveAvgPool2d(1), 2), channels(1)),
    "adaptive_maximum": (conv(nn.AdaptiveMaxPool2d(2), 8), channels(4)),
    "upsampling": (conv(nn.Upsample(scale_factor=2), 128), channels(64)),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_degrees_are_found(name: str) -> None:
    (model, *args), expected = FOUND[name]
    symmetry = find_symmetry(model, *args, scales=True)
    assert scales_of(symmetry) == written(expected)
    checks = [c for c in check_groups(symmetry, model, *args) if c.action == "rescale"]
    assert len(checks) == len(expected)
    assert all(check.passed and check.is_effective for check in checks)


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
@pytest.mark.parametrize("name", ARCHITECTURES)
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


@pytest.mark.parametrize("name", UNPERMUTED)
def test_units_that_are_not_permuted_are_rescaled(name: str) -> None:
    (model, *args), expected = UNPERMUTED[name]
    symmetry = find_symmetry(model, *args, scales=True)
    assert scales_of(symmetry) == written(expected)
    checks = check_groups(symmetry, model, *args)
    assert sum(check.action == "rescale" for check in checks) == len(expected)
    assert all(check.passed and (check.is_effective or check.control is None) for check in checks)


def tied_autoencoder(x: Tensor) -> Tensor:
    """The weights are incoming and outgoing at once."""
    w = normal("w", 3, 5)
    return (torch.relu(x @ w + normal("b", 5)) @ w.T).sum(-1)


def mixed(x: Tensor) -> Tensor:
    h = x @ normal("w1", 3, 5)
    return torch.cat([h.relu(), h.tanh()], 1).sum(1) + normal("b", 1)


def biased_after_all(x: Tensor) -> Tensor:
    return torch.relu(x @ normal("w1", 3, 5) + 0.1) @ normal("w2", 5)


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
    "tanh": (mlp(torch.tanh), r"aten.tanh is not homogeneous \(test_scales.py:\d+\)"),
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


@pytest.mark.filterwarnings("ignore:the model reads a value")
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_cause(name: str) -> None:
    (model, *args), reason = REFUSED[name]
    symmetry = find_symmetry(model, *args, scales=True)
    assert symmetry and scales_of(symmetry) == set()
    why = symmetry.reasons["scale of P0"]
    assert re.search(reason, why), why
    assert f"scale of P0 is fixed: {why}" in " ".join(symmetry.summary().split())


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


DEGREES = (-1, 0, 1)


@pytest.mark.parametrize("build", [lambda: mlp(), lambda: mlp(torch.tanh), lambda: mlp(torch.abs)])
def test_scales_are_found_where_an_exhaustive_search_finds_some(build: Any) -> None:
    model, *args = build()
    symmetry = find_symmetry(model, *args, scales=True)
    valid = []
    for degrees in itertools.product(DEGREES, repeat=3):
        axes = {s: pp.Axis(-1, scale=k) for s, k in zip(("w1", "b1", "w2"), degrees, strict=True)}
        variant = PermutationSymmetry({"P0": axes})
        if any(degrees) and all(check.passed for check in check_groups(variant, model, *args)):
            valid.append(variant.spec)
    assert (symmetry.spec in valid) == bool(valid)
    assert len(valid) == (2 if valid else 0)  # a scale and its inverse
