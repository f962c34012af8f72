"""Reader of posteriors (Duffield et al. 2024): states of ``vi``, ``laplace`` and ``ekf``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_perm.networks.gaussian import DenseGaussian, Gaussian

_SCALES_OF: dict[str, Callable[[Tensor], Tensor]] = {
    "log_sd_diag": torch.exp,  # VIDiagState
    "prec_diag": torch.rsqrt,  # DiagLaplaceState
    "sd_diag": torch.clone,  # EKFDiagState
}
_DENSE = ("L_factor", "prec", "cov")  # VIDenseState, DenseLaplaceState, EKFDenseState


def from_posteriors(state: Any) -> Gaussian:
    """The Gaussian of a state such as ``VIDiagState`` or ``DenseLaplaceState``.

    :param state: whose ``params`` are ``dict(network.named_parameters())``.
    :returns: means and standard deviations, or a :class:`DenseGaussian`.
    :raises TypeError: if the state is no Gaussian, or its parameters have no names.
    """
    if not isinstance(state.params, Mapping):
        raise TypeError(
            "the state's params have no names: build it from dict(network.named_parameters())"
        )
    means = {name: value.detach() for name, value in state.params.items()}
    for field, scale_of in _SCALES_OF.items():
        if hasattr(state, field):
            spread = getattr(state, field)
            return {name: (mean, scale_of(spread[name].detach())) for name, mean in means.items()}
    for field in _DENSE:
        if hasattr(state, field):
            return _dense(field, getattr(state, field).detach(), means)
    raise TypeError(
        f"a {type(state).__name__} is no Gaussian: it has none of {[*_SCALES_OF, *_DENSE]}"
    )


def _dense(field: str, matrix: Tensor, means: Mapping[str, Tensor]) -> DenseGaussian:
    ordered = _in_order_of_rows(means)
    if field == "prec":
        return DenseGaussian.of_precision(ordered, matrix)
    if field == "L_factor":
        size = sum(mean.numel() for mean in means.values())
        factor = matrix.new_zeros(size, size)
        rows, columns = torch.tril_indices(size, size, device=matrix.device)
        factor[rows, columns] = matrix
        matrix = factor @ factor.mT
    return DenseGaussian.of_covariance(ordered, matrix)


def _in_order_of_rows(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means, in the order in which the library flattens them."""
    from optree.integrations.torch import tree_ravel

    numbers = {name: torch.full_like(mean, i) for i, (name, mean) in enumerate(means.items())}
    names = list(means)
    return {
        names[int(i)]: means[names[int(i)]] for i in tree_ravel(numbers)[0].unique_consecutive()
    }
