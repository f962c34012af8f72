"""Reader of bayesian-torch (Krishnan et al. 2022): layers with ``mu_...`` and ``rho_...``."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_perm.networks.readers._parameters import gaussians_of_layers


def from_bayesian_torch(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The Gaussian of a network of reparametrization or flipout layers.

    A linear layer's ``mu_weight`` and a convolution's ``mu_kernel`` are ``weight`` of the
    corresponding layer of ``torch.nn``; standard deviations are ``softplus(rho)``.

    :param network: the network, as ``dnn_to_bnn`` makes it.
    :returns: name of the parameter in the deterministic network -> means and standard deviations.
    :raises ValueError: if no layer is Bayesian.
    """
    return gaussians_of_layers(network, "mu_...", "rho_...", renamed={"kernel": "weight"})
