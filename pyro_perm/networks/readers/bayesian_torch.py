"""Reader of bayesian-torch (Krishnan et al. 2022): layers with ``mu_...`` and ``rho_...``."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_perm.networks.readers._parameters import softplus_of


def from_bayesian_torch(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The Gaussian of a network of reparametrization or flipout layers.

    A linear layer's ``mu_weight`` and a convolution's ``mu_kernel`` are ``weight`` of the
    corresponding layer of ``torch.nn``; standard deviations are ``softplus(rho)``.

    :param network: the network, as ``dnn_to_bnn`` makes it.
    :returns: name of the parameter in the deterministic network -> means and standard deviations.
    :raises ValueError: if no layer is Bayesian.
    """
    found = {}
    for prefix, layer in network.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        for name, mean in own.items():
            part = name.removeprefix("mu_")
            if part != name and f"rho_{part}" in own:
                target = "weight" if part == "kernel" else part
                full = f"{prefix}.{target}" if prefix else target
                found[full] = (mean.detach(), softplus_of(own[f"rho_{part}"]))
    if not found:
        raise ValueError("no layer of the network has parameters mu_... and rho_...")
    return found
