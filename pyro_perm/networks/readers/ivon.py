"""Reader of IVON (Shen et al. 2024): a variational Gaussian in an optimizer's state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyro_perm.networks.readers._parameters import names_of, split


def from_ivon(optimizer: Any, network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The Gaussian that an ``ivon.IVON`` optimizer has fitted.

    Means are the parameters, outside of ``sampled_params``; variances are
    ``1 / (ess * (hess + weight_decay))``. Its prior is ``Normal(0, (ess * weight_decay)**-0.5)``.

    :param optimizer: the optimizer.
    :param network: whose parameters it optimizes.
    :returns: name -> means and standard deviations.
    :raises ValueError: if a parameter is not one of the network.
    """
    found = {}
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter is not None]
        names = names_of(parameters, network)
        precision = group["ess"] * (group["hess"] + group["weight_decay"])
        scales = split(precision.rsqrt(), names, parameters)
        for name, parameter in zip(names, parameters, strict=True):
            found[name] = (parameter.detach().clone(), scales[name])
    return found
