"""Reader of laplace-torch (Daxberger et al. 2021): ``Diag``, ``Full``, ``Kron``, ``LowRank``."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_perm.networks.gaussian import DenseGaussian, Gaussian
from pyro_perm.networks.priors import Prior
from pyro_perm.networks.readers._parameters import names_of, split


def from_laplace(laplace: Any) -> Gaussian:
    """The Gaussian of a fitted Laplace approximation, of all weights or the last layer.

    :param laplace: ``Laplace(model, ...)`` after ``fit``.
    :returns: means and standard deviations if it is diagonal, else a :class:`DenseGaussian`.
    :raises ValueError: if it is over some entries of tensors only (subnetworks).
    :raises TypeError: if it has no Gaussian over weights, or was not fitted.
    """
    names, parameters = _parameters(laplace)
    means = split(_vector(laplace.mean), names, parameters)
    precision = laplace.posterior_precision
    if isinstance(precision, Tensor) and precision.dim() == 1:
        scales = split(precision.rsqrt(), names, parameters)
        return {name: (mean, scales[name]) for name, mean in means.items()}
    if isinstance(precision, Tensor):
        return DenseGaussian.of_precision(means, precision.detach())
    if isinstance(precision, tuple):  # Low rank: eigenvectors and eigenvalues, and a diagonal.
        (vectors, values), diagonal = precision
        return DenseGaussian.of_precision(
            means, ((vectors * values) @ vectors.mT + diagonal.diag()).detach()
        )
    # Kronecker factors.
    return DenseGaussian.of_precision(means, precision.to_matrix().detach())


def prior_of_laplace(laplace: Any) -> Prior:
    """The prior of a Laplace approximation: Normal, with its mean and precision.

    :param laplace: as in :func:`from_laplace`.
    """
    names, parameters = _parameters(laplace)
    precisions = split(laplace.prior_precision_diag, names, parameters)
    size = laplace.prior_precision_diag.numel()
    means = split(torch.as_tensor(laplace.prior_mean).expand(size), names, parameters)

    def prior(name: str, parameter: Tensor) -> dist.TorchDistribution | None:
        if name not in means:
            return None
        normal: dist.TorchDistribution = dist.Normal(
            _of_one_entry(means[name]), _of_one_entry(precisions[name]).rsqrt()
        )
        return normal

    return prior


def _parameters(laplace: Any) -> tuple[list[str], list[Tensor]]:
    """Names of the parameters that it is over, and the parameters."""
    model = laplace.model
    last_layer = getattr(model, "last_layer", None)
    if last_layer is not None:  # The library has wrapped the network to read its features.
        parameters = list(last_layer.parameters())
        return names_of(parameters, model.model), parameters
    network: nn.Module = model
    return names_of(laplace.params, network), laplace.params


def _vector(mean: Any) -> Tensor:
    if not isinstance(mean, Tensor) or mean.dim() != 1:
        raise TypeError("the Laplace approximation has no mean yet: call fit(loader) first")
    return mean


def _of_one_entry(tensor: Tensor) -> Tensor:
    """One entry, if all are equal: the units then are alike whatever it is."""
    first = tensor.flatten()[0]
    return first if bool((tensor == first).all()) else tensor
