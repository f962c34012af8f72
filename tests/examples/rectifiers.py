"""Networks of rectifiers and other homogeneous functions, with the axes that they rescale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from examples.bayesian import normal, observe, regression
from torch import Tensor, nn

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


def states_written_in_place(x: Tensor) -> Tensor:
    """The recurrent weight is used before the incoming one."""
    w, u = normal("w", 3, 4), normal("u", 4, 4)
    states = torch.zeros(len(x), 4, 4)
    for t in range(1, 4):
        states[:, t] = torch.relu(states[:, t - 1] @ u + x @ w)
    return states[:, -1] @ normal("out", 4)


def written_beside_zeros(x: Tensor) -> Tensor:
    """Of the second layer's seven inputs five are units; the last two are always zero."""
    h = torch.zeros(len(x), 7)
    h[:, :5] = torch.relu(x @ normal("w1", 3, 5))
    return h @ normal("w2", 7)


EDGES = torch.tensor([[0, 1, 2, 3, 3], [1, 0, 3, 2, 0]])
ADJACENCY = torch.tensor(
    [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]
).double()


def graph_network(x: Tensor) -> Tensor:
    """Messages along edges, summed by a scatter and by a sparse matrix."""
    messages = torch.relu(x @ normal("w1", 3, 5))[EDGES[0]]
    h = torch.zeros(len(x), 5).index_add(0, EDGES[1], messages)
    return torch.sparse.mm(ADJACENCY.to_sparse(), torch.relu(h @ normal("w2", 5, 2))) @ normal(
        "w3", 2
    )


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
    "rrelu": (mlp(F.rrelu), [HIDDEN]),  # Random slopes only where it is training.
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
    "states_written_in_place": (
        functional(states_written_in_place),
        ["w[-1]^1 u[-2]^-1 u[-1]^1 out[-1]^-1"],
    ),
    "written_beside_zeros": (
        functional(written_beside_zeros),
        ["w1[-1]^1 w2[-1:0..4]^-1", "w2[-1:5..6]^1"],
    ),
    "graph_network": (
        functional(graph_network),
        ["w1[-1]^1 w2[-2]^-1", "w2[-1]^1 w3[-1]^-1"],
    ),
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
