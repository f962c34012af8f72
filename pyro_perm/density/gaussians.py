"""Gaussian distributions taken apart: their entries' locs and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.distributions import Delta
from pyro.ops.provenance import ProvenanceTensor, detach_provenance
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

JointGaussian = MultivariateNormal | LowRankMultivariateNormal


def as_normal(distribution: Any) -> Normal | None:
    """The Normal behind a distribution with independent entries, or None."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution if isinstance(distribution, Normal) else None


def marginals(gaussian: JointGaussian | Normal) -> tuple[Tensor, Tensor]:
    """Locs and scales of a vector's entries, without batch dimensions that were only expanded."""
    if isinstance(gaussian, Normal):
        return drop_expanded(gaussian.loc, 1), drop_expanded(gaussian.scale, 1)
    if isinstance(gaussian, MultivariateNormal):
        variance = drop_expanded(gaussian.scale_tril, 2).square().sum(-1)
    else:
        factor, diagonal = (
            drop_expanded(gaussian.cov_factor, 2),
            drop_expanded(gaussian.cov_diag, 1),
        )
        variance = factor.square().sum(-1) + diagonal
    return drop_expanded(gaussian.loc, 1), variance.sqrt()


def parameters_of(distribution: Any) -> tuple[Tensor, ...]:
    """The parameters of a Gaussian, or of a point mass; none of other distributions."""
    normal = as_normal(distribution)
    if normal is not None:
        return normal.loc, normal.scale
    if isinstance(distribution, MultivariateNormal):
        return distribution.loc, distribution.scale_tril
    if isinstance(distribution, LowRankMultivariateNormal):
        return distribution.loc, distribution.cov_factor, distribution.cov_diag
    return (distribution.v,) if isinstance(distribution, Delta) else ()


@dataclass(frozen=True)
class GaussianVector:
    """The distribution of a vector whose entries are jointly Gaussian.

    Attributes:
        gaussian: the distribution.
    """

    gaussian: JointGaussian

    def log_ratio(self, moved: Tensor, vector: Tensor) -> Tensor:
        """``log q(moved) - log q(vector)``.

        :param moved: shape ``(num, *batch, size)``.
        :param vector: shape ``(*batch, size)``.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """
        gaussian = _in_double_precision(self.gaussian)
        log_ratio: Tensor = gaussian.log_prob(moved) - gaussian.log_prob(vector)
        return log_ratio


def _in_double_precision(gaussian: JointGaussian) -> Distribution:
    """The same Gaussian, in double precision and without dimensions that were only expanded."""
    loc = drop_expanded(gaussian.loc, 1).double()
    if isinstance(gaussian, MultivariateNormal):
        scale_tril = drop_expanded(gaussian.scale_tril, 2).double()
        return MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)
    factor = drop_expanded(gaussian.cov_factor, 2).double()
    diagonal = drop_expanded(gaussian.cov_diag, 1).double()
    return LowRankMultivariateNormal(loc, factor, diagonal, validate_args=False)


def drop_expanded(tensor: Tensor, rank: int) -> Tensor:
    """Drop batch dimensions along which a parameter was only expanded."""
    if type(tensor) is ProvenanceTensor:  # Not isinstance, which is slow: this is every step.
        tensor = detach_provenance(tensor)
    while tensor.dim() > rank and (tensor.stride(0) == 0 or tensor.shape[0] == 1):
        tensor = tensor[0]
    return tensor
