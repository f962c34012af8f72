"""Names and parts of parameters, which several libraries leave to the reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def gaussians_of_layers(
    network: nn.Module, mean: str, rho: str, renamed: Mapping[str, str] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and standard deviations ``softplus(rho)`` of layers that train both.

    :param mean: what a layer calls the means of a parameter, with dots in the place of its name, as
        in ``mu_...``; ``rho`` likewise.
    :param renamed: parameters that the corresponding layer of ``torch.nn`` calls otherwise.
    :raises ValueError: if no layer has such parameters.
    """
    found = {}
    start, end = mean.split("...")
    for prefix, layer in network.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        for name, value in own.items():
            part = name.removeprefix(start).removesuffix(end)
            trained = own.get(rho.replace("...", part))
            if name == mean.replace("...", part) and trained is not None:
                target = (renamed or {}).get(part, part)
                full = f"{prefix}.{target}" if prefix else target
                scale = torch.nn.functional.softplus(trained.detach())
                found[full] = (value.detach(), scale)
    if not found:
        raise ValueError(f"no layer of the network has parameters {mean} and {rho}")
    return found
