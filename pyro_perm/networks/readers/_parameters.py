"""Names and parts of parameters, which several libraries leave to the reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def names_of(parameters: Iterable[Tensor], network: nn.Module) -> list[str]:
    """The names that a network has for some of its parameters.

    :raises ValueError: if a parameter is not one of the network.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    each = list(parameters)
    for parameter in each:
        if id(parameter) not in names:
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} is none of the network's: pass the "
                "network whose parameters were trained"
            )
    return [names[id(parameter)] for parameter in each]


def split(vector: Tensor, names: Sequence[str], parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """A flat vector as tensors of the parameters' shapes, by name.

    :raises ValueError: if it is of another length.
    """
    shapes = [parameter.shape for parameter in parameters]
    sizes = [shape.numel() for shape in shapes]
    if vector.shape != (sum(sizes),):
        raise ValueError(
            f"the posterior is over {vector.numel()} numbers, but the parameters have "
            f"{sum(sizes)}: one over a part of a tensor has no symmetry to certify"
        )
    parts = zip(names, vector.detach().split(sizes), shapes, strict=True)
    return {name: part.reshape(shape) for name, part, shape in parts}


def softplus_of(rho: Tensor) -> Tensor:
    """The standard deviation that a layer makes of what it trains."""
    return torch.nn.functional.softplus(rho.detach())
