"""The density of a base guide that draws all sites jointly, as one Gaussian vector.

No permanent sums it over permutations, since ``log q(g . w)`` is no sum over pairs of units. Its
marginals are a factorized density, whose unit pairs tell which permutations to propose; what a
permutation weighs is up to the joint density.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal

from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.symmetry.elements import Elements

JointGaussian = MultivariateNormal | LowRankMultivariateNormal


@dataclass(frozen=True)
class CorrelatedDensity(FactorizedDensity):
    """A joint Gaussian over the sites of a symmetry, and a draw ``w`` from it.

    The locs and scales, and with them the unit pairs, are those of its marginals.

    Attributes:
        joint: distribution of the vector of all sites, in unconstrained space.
        vector: what was drawn, shape ``(*batch, size)``.
        slices: site -> where its value lies in the vector, flattened.
    """

    joint: JointGaussian
    vector: Tensor
    slices: Mapping[str, slice]

    factorizes: ClassVar[bool] = False

    def log_ratio(self, permutations: Elements) -> Tensor:
        """``log q(g . w) - log q(w)`` for many ``g``, by the joint density.

        :param permutations: an element of every group, shape ``(num, *batch, n)``.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """
        joint, vector = _in_double_precision(self.joint), self.vector.double()
        num = next(iter(permutations.values())).shape[0]
        moved = vector.expand(num, *vector.shape).clone()
        for site, value in self.symmetry.apply(permutations, self.values).items():
            start = value.dim() - self.symmetry.site_rank(site)
            moved[..., self.slices[site]] = value.flatten(start).double()
        log_ratio: Tensor = joint.log_prob(moved) - joint.log_prob(vector)
        return log_ratio


def marginals(joint: JointGaussian) -> tuple[Tensor, Tensor]:
    """Locs and scales of the entries, without batch dimensions that were only expanded."""
    if isinstance(joint, MultivariateNormal):
        variance = unexpanded(joint.scale_tril, 2).square().sum(-1)
    else:
        factor, diagonal = unexpanded(joint.cov_factor, 2), unexpanded(joint.cov_diag, 1)
        variance = factor.square().sum(-1) + diagonal
    return unexpanded(joint.loc, 1), variance.sqrt()


def unexpanded(tensor: Tensor, rank: int) -> Tensor:
    """Drop batch dimensions along which a parameter was only expanded."""
    while tensor.dim() > rank and (tensor.stride(0) == 0 or tensor.shape[0] == 1):
        tensor = tensor[0]
    return tensor


def _in_double_precision(joint: JointGaussian) -> Distribution:
    loc = unexpanded(joint.loc, 1).double()
    if isinstance(joint, MultivariateNormal):
        scale_tril = unexpanded(joint.scale_tril, 2).double()
        return MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)
    factor = unexpanded(joint.cov_factor, 2).double()
    diagonal = unexpanded(joint.cov_diag, 1).double()
    return LowRankMultivariateNormal(loc, factor, diagonal, validate_args=False)
