"""Reader of torch-uncertainty (Lafage et al.): layers with ``..._mu`` and ``..._sigma``.

What it calls sigma is trained before the softplus that makes a standard deviation of it.
"""

from __future__ import annotations

from torch import Tensor, nn

from pyro_perm.networks.readers._parameters import gaussians_of_layers


def from_torch_uncertainty(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The Gaussian of a network of ``BayesLinear`` and ``BayesConv`` layers.

    Standard deviations are ``softplus(weight_sigma)``, as its sampler computes them.

    :param network: the network.
    :returns: name of the parameter in the deterministic network -> means and standard deviations.
    :raises ValueError: if no layer is Bayesian.
    """
    return gaussians_of_layers(network, "..._mu", "..._sigma")
