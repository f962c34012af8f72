"""The density of a base guide that draws all sites jointly, as one Gaussian vector.

No permanent sums it over permutations, since ``log q(g . w)`` is no sum over pairs of units. Its
marginals are a factorized density, whose unit pairs tell which permutations to propose; what a
permutation weighs is up to the joint density.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.density.gaussians import JointGaussian, in_double_precision
from pyro_perm.symmetry.elements import Elements


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

    def with_fixed_draws(self) -> CorrelatedDensity:
        """The same, but autograd takes the draw for a constant."""
        values = {site: value.detach() for site, value in self.values.items()}
        return replace(self, values=values, vector=self.vector.detach())

    def log_ratio(self, permutations: Elements) -> Tensor:
        """``log q(g . w) - log q(w)`` for many ``g``, by the joint density.

        :param permutations: an element of every group, shape ``(num, *batch, n)``.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """
        joint, vector = in_double_precision(self.joint), self.vector.double()
        num = next(iter(permutations.values())).shape[0]
        moved = vector.expand(num, *vector.shape).clone()
        for site, value in self.symmetry.apply(permutations, self.values).items():
            start = value.dim() - self.symmetry.site_rank(site)
            moved[..., self.slices[site]] = value.flatten(start).double()
        log_ratio: Tensor = joint.log_prob(moved) - joint.log_prob(vector)
        return log_ratio
