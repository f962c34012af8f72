"""Reader of torch-uncertainty (Lafage et al.): layers with ``..._mu`` and ``..._sigma``.

What it calls sigma is trained before the softplus that makes a standard deviation of it.
"""

from __future__ import annotations

from torch import Tensor, nn

from pyro_perm.networks.readers._parameters import softplus_of


def from_torch_uncertainty(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The Gaussian of a network of ``BayesLinear`` and ``BayesConv`` layers.

    Standard deviations are ``softplus(weight_sigma)``, as its sampler computes them.

    :param network: the network.
    :returns: name of the parameter in the deterministic network -> means and standard deviations.
    :raises ValueError: if no layer is Bayesian.
    """
    found = {}
    for prefix, layer in network.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        for name, mean in own.items():
            part = name.removesuffix("_mu")
            if part != name and f"{part}_sigma" in own:
                full = f"{prefix}.{part}" if prefix else part
                found[full] = (mean.detach(), softplus_of(own[f"{part}_sigma"]))
    if not found:
        raise ValueError("no layer of the network has parameters ..._mu and ..._sigma")
    return found
