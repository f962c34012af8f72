"""Bayesian networks for the tests of symmetry discovery, and a notation for what is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.symmetry import Axis


@dataclass(frozen=True)
class Example:
    """A model, its arguments, and its groups in the notation of :func:`groups_of`."""

    name: str
    build: Callable[[], tuple[Any, ...]]
    groups: tuple[str, ...]


EXAMPLES: list[Example] = []

# What takes seconds to check; smaller ones are made of the same parts.
LARGE = (
    *("resnet_batch_norm", "resnet_batch_norm_eval", "resnet_group_norm", "unet", "densenet"),
    *("transformer", "transformer_norm_first", "transformer_coded_positions"),
    *("lstm", "lstm_bidirectional_stacked", "gru", "rnn", "mixture_of_experts", "mlp_einsum"),
    *("resnet_layer_norm", "resnet_instance_norm", "grouped_convolution"),
    *("depthwise_convolution", "zero_padded_shortcut", "group_norm_of_a_concatenation"),
    *("hidden_markov_enumerated", "gaussian_mixture_enumerated", "hidden_markov_marginal"),
    *("fourier_operator", "tied_embedding", "mixture_of_ordered_logistics"),
    *("states_written_one_by_one", "covariance_of_two_kinds"),
)


def example(*groups: str) -> Callable[[Callable[[], tuple[Any, ...]]], Callable[..., Any]]:
    """Register a function that builds ``(model, *args)``, with the groups that must be found."""

    def register(build: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
        EXAMPLES.append(Example(build.__name__, build, groups))
        return build

    return register


def bayesian(module: nn.Module, *, keep: Iterable[str] = ()) -> nn.Module:
    """Give every parameter a standard normal prior, except the named ones."""
    to_pyro_module_(module)
    for prefix, part in list(module.named_modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            full_name = f"{prefix}.{name}" if prefix else name
            if full_name not in keep:
                prior = dist.Normal(0.0, 1.0).expand(parameter.shape).to_event(parameter.dim())
                setattr(part, name, PyroSample(prior))
    return module


class Regression(PyroModule):
    """A Bayesian network with a Gaussian likelihood for all its outputs."""

    def __init__(self, net: nn.Module, *, keep: Iterable[str] = ()) -> None:
        super().__init__()
        self.net = bayesian(net, keep=keep)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        mean = self.net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(mean.dim() - 1), obs=y)


def regression(net: nn.Module, x: Tensor, **options: Any) -> tuple[Regression, Tensor, Tensor]:
    """The Bayesian version of a network, with data of its shapes."""
    with torch.no_grad():
        y = torch.randn_like(net(x))
    return Regression(net, **options), x, y


def normal(name: str, *shape: int) -> Tensor:
    """A site with independent standard normal entries."""
    return pyro.sample(name, dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


def observe(mean: Tensor, y: Tensor) -> None:
    """Gaussian observations of everything that a network returns."""
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(mean.dim()), obs=y)


def groups_of(symmetry: PermutationSymmetry) -> set[frozenset[str]]:
    """The groups without their names, ``{"fc1.weight[-2]", "fc2.weight[-1]"}`` for each.

    ``[-1:o3,i2]`` is an axis with ``outer=3, inner=2``, ``[-1:4..6]`` one with coordinates 4 to 6,
    and ``[-1:0,2]`` one with coordinates 0 and 2.
    """
    return {
        frozenset(
            f"{site.removeprefix('net.')}[{_notation(axis)}]"
            for site, axes in sites.items()
            for axis in axes
        )
        for sites in symmetry.spec.values()
    }


def scales_of(symmetry: PermutationSymmetry) -> set[frozenset[str]]:
    """The axes that groups rescale, ``{"fc1.weight[-2]^1", "fc2.weight[-1]^-1"}`` for each.

    Groups that only rescale have ``"unpermuted"`` among them.
    """
    found = set()
    for sites in symmetry.spec.values():
        axes = [(site, axis) for site, each in sites.items() for axis in each if axis.scale]
        names = {
            f"{site.removeprefix('net.')}[{_notation(axis)}]^{axis.scale}" for site, axis in axes
        }
        if names:
            is_permuted = all(axis.permute for _, axis in axes)
            found.add(frozenset(names if is_permuted else names | {"unpermuted"}))
    return found


def _notation(axis: Axis) -> str:
    parts = [f"o{axis.outer}"] * (axis.outer > 1) + [f"i{axis.inner}"] * (axis.inner > 1)
    if isinstance(axis.index, range):
        parts.append(f"{axis.index.start}..{axis.index.stop - 1}")
    elif axis.index is not None:
        parts.append(",".join(map(str, axis.index)))
    return f"{axis.dim}:{','.join(parts)}" if parts else f"{axis.dim}"


def written(groups: Iterable[str]) -> set[frozenset[str]]:
    """Groups written as ``"fc1.weight[-2] fc1.bias[-1] fc2.weight[-1]"``."""
    return {frozenset(group.split()) for group in groups}
