"""Reader of SWAG (Maddox et al. 2019), as its authors' ``swag.posteriors.SWAG`` keeps it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.networks.gaussian import Gaussian, LowRankGaussian


def from_swag(swag: Any, *, scale: float = 1.0, low_rank: bool = True) -> Gaussian:
    """The Gaussian from which a SWAG module samples.

    The covariance is ``scale * (D + F F^T / (K - 1))``: ``D`` holds the variances along the
    trajectory, the columns of ``F`` its last ``K`` deviations from the mean.

    :param swag: the module, with ``params``, ``base`` and the buffers ``<name>_mean``,
        ``<name>_sq_mean`` and ``<name>_cov_mat_sqrt``.
    :param scale: as in its ``sample(scale)``; the paper's covariance has 0.5.
    :param low_rank: whether deviations count, if it has some, as in its ``sample(cov=True)``.
    :returns: means and standard deviations, or a :class:`LowRankGaussian`.
    :raises ValueError: if fewer than two networks were collected.
    """
    if int(swag.n_models) < 2:
        raise ValueError("SWAG has collected fewer than two networks: call collect_model first")
    prefixes = {id(module): name for name, module in swag.base.named_modules()}
    means, variances, deviations = {}, {}, []
    for module, name in swag.params:
        prefix = prefixes[id(module)]
        full = f"{prefix}.{name}" if prefix else name
        means[full] = _buffer(module, name, "mean")
        square = _buffer(module, name, "sq_mean")
        variances[full] = scale * (square - means[full].square()).clamp(min=swag.var_clamp)
        if low_rank and not swag.no_cov_mat:
            deviations.append(_buffer(module, name, "cov_mat_sqrt"))
    if not deviations:
        return {name: (mean, variances[name].sqrt()) for name, mean in means.items()}
    factor = torch.cat(deviations, dim=1).mT * (scale / (swag.max_num_models - 1)) ** 0.5
    return LowRankGaussian(means, factor, torch.cat([v.flatten() for v in variances.values()]))


def _buffer(module: Any, name: str, statistic: str) -> Tensor:
    buffer: Tensor = getattr(module, f"{name}_{statistic}")
    return buffer.detach()
