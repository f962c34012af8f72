"""Networks on graphs and in frequency space, mixtures of many families, and their axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from examples.bayesian import example, normal, observe, regression
from torch import Tensor, nn

NODES = 6
ADJACENCY = (torch.arange(NODES * NODES).view(NODES, NODES) % 5 < 2).double()
TARGETS, SOURCES = ADJACENCY.nonzero().T

HIDDEN = "w1[-1] w2[-2]"


def graph_network(propagate: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        hidden = torch.relu(propagate(x @ normal("w1", 4, 5)))
        logits = propagate(hidden @ normal("w2", 5, 3))
        with pyro.plate("nodes", NODES):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model, torch.randn(NODES, 4), torch.randint(3, (NODES,))


@example(HIDDEN)
def graph_dense() -> tuple[Any, ...]:
    return graph_network(lambda h: ADJACENCY @ h)


@example(HIDDEN)
def graph_sparse() -> tuple[Any, ...]:
    adjacency = ADJACENCY.to_sparse()
    return graph_network(lambda h: torch.sparse.mm(adjacency, h))


@example(HIDDEN)
def graph_of_messages() -> tuple[Any, ...]:
    return graph_network(
        lambda h: torch.zeros(NODES, h.shape[-1]).index_add(0, TARGETS, h[SOURCES])
    )


@example(HIDDEN)
def graph_of_mean_messages() -> tuple[Any, ...]:
    def propagate(h: Tensor) -> Tensor:
        index = TARGETS[:, None].expand(-1, h.shape[-1])
        return torch.zeros(NODES, h.shape[-1]).scatter_reduce(0, index, h[SOURCES], "mean")

    return graph_network(propagate)


@example("w1[-1] source[-1] target[-1] w2[-2]")
def graph_attention() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        h = x @ normal("w1", 4, 5)
        score = h[TARGETS] @ normal("target", 5) + h[SOURCES] @ normal("source", 5)
        weight = F.leaky_relu(score).exp()
        total = torch.zeros(NODES).index_add(0, TARGETS, weight)
        messages = (weight / total[TARGETS])[:, None] * h[SOURCES]
        logits = torch.zeros(NODES, 5).index_add(0, TARGETS, messages).relu() @ normal("w2", 5, 3)
        with pyro.plate("nodes", NODES):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model, torch.randn(NODES, 4), torch.randint(3, (NODES,))


@example("up[-1] re[-3] im[-3]", "re[-2] im[-2] down[-1]")
def fourier_operator() -> tuple[Any, ...]:
    def model(a: Tensor, u: Tensor) -> None:
        up, down = normal("up", 3), normal("down", 4)
        weights = torch.complex(normal("re", 3, 4, 4), normal("im", 3, 4, 4))
        modes = torch.fft.rfft(a[:, None] * up[:, None])[..., :4]
        g = torch.fft.irfft(torch.einsum("bim,iom->bom", modes, weights), n=a.shape[-1])
        observe((torch.relu(g) * down[:, None]).sum(1), u)

    return model, torch.randn(5, 8), torch.randn(5, 8)


@example("a[-1] phase[-1] b[-2:i2]")
def complex_pairs() -> tuple[Any, ...]:
    """Complex weights held as pairs of real numbers."""

    def model(x: Tensor, y: Tensor) -> None:
        h = torch.polar(torch.exp(x @ normal("a", 3, 4)), x @ normal("phase", 3, 4))
        observe(torch.view_as_real(h.conj().resolve_conj()).flatten(1) @ normal("b", 8, 2), y)

    return model, torch.randn(5, 3), torch.randn(5, 2)


@example(
    *("a.weight[-4] c.weight[-3:0..2]", "b.weight[-4:1..4] c.weight[-3:4..7]"),
    "c.weight[-4] d.weight[-3]",
)
def group_norm_of_a_concatenation() -> tuple[Any, ...]:
    """Groups of four channels, of which three and one, and then four, come from each layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(1, n, 1, bias=False) for n in (3, 5))
            self.norm = nn.GroupNorm(2, 8, affine=False)
            self.c, self.d = nn.Conv2d(8, 3, 1, bias=False), nn.Conv2d(3, 1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.cat([self.a(x), self.b(x.sin())], 1)
            return self.d(torch.relu(self.c(torch.relu(self.norm(h)))))

    return regression(Net(), torch.randn(2, 1, 3, 3))


def mixture(component: Callable[[Tensor], Any], x: Tensor) -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("class", 3):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        with pyro.plate("data", len(x)):
            classes = dist.Categorical(weights)
            pyro.sample("x", dist.MixtureSameFamily(classes, component(p)), obs=x)

    return model, x


@example("weights[-1] p[-2]")
def mixture_of_bernoullis() -> tuple[Any, ...]:
    answers = torch.bernoulli(torch.full((5, 4), 0.4))
    return mixture(lambda p: dist.Bernoulli(p).to_event(1), answers)


@example("weights[-1] p[-2]")
def mixture_of_multinomials() -> tuple[Any, ...]:
    counts = dist.Multinomial(9, torch.ones(4)).sample((5,))
    return mixture(lambda p: dist.Multinomial(9, p), counts)


@example("weights[-1] p[-2]")
def mixture_of_low_rank_normals() -> tuple[Any, ...]:
    def component(p: Tensor) -> Any:
        return dist.LowRankMultivariateNormal(p, p[..., None], torch.ones(4))

    return mixture(component, torch.randn(5, 4))


@example("weights[-1] predictor[-1] cutpoints[-2]")
def mixture_of_ordered_logistics() -> tuple[Any, ...]:
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        steps = pyro.sample("cutpoints", dist.LogNormal(0.0, 1.0).expand([3, 4]).to_event(2))
        components = dist.OrderedLogistic(normal("predictor", 3), steps.cumsum(-1))
        with pyro.plate("data", len(x)):
            mixture = dist.MixtureSameFamily(dist.Categorical(weights), components)
            pyro.sample("x", mixture, obs=x)

    return model, torch.tensor([0, 1, 3, 4])


@example("w[-2] w[-1] u[-1] o[-1]")
def states_written_one_by_one() -> tuple[Any, ...]:
    def model(x: Tensor, y: Tensor) -> None:
        w, u, states = normal("w", 4, 4), normal("u", 4), torch.zeros(len(x), 3, 4)
        for t in range(3):
            before = states[:, t - 1] if t else torch.zeros(len(x), 4)
            states[:, t] = torch.tanh(x[:, t : t + 1] * u + before @ w)
        observe(states.mean(1) @ normal("o", 4), y)

    return model, torch.randn(5, 3), torch.randn(5)
