"""The density of a base guide that draws all sites jointly, as one vector.

No permanent sums it over permutations, since ``log q(g . w)`` is no sum over pairs of units. Its
marginals are a factorized density, whose unit pairs tell which permutations to propose; what a
permutation weighs is up to the joint density.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.symmetry.elements import Elements


class JointDistribution(Protocol):
    """The distribution of a vector."""

    def log_ratio(self, moved: Tensor, vector: Tensor) -> Tensor:
        """``log q(moved) - log q(vector)``.

        :param moved: shape ``(num, *batch, size)``, in double precision.
        :param vector: shape ``(*batch, size)``, likewise.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """


@dataclass(frozen=True)
class CorrelatedDensity(Density):
    """A joint distribution over the sites of a symmetry, and a draw ``w`` from it.

    The locs and scales, and with them the unit pairs, are those of its marginals.

    Attributes:
        joint: distribution of the vector of all sites, in unconstrained space.
        vector: what was drawn, shape ``(*batch, size)``.
        slices: site -> where its value lies in the vector, flattened.
    """

    joint: JointDistribution
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
        vector = self.vector.double()
        num = next(iter(permutations.values())).shape[0]
        moved = vector.expand(num, *vector.shape).clone()
        for site, value in self.symmetry.apply(permutations, self.values).items():
            start = value.dim() - self.symmetry.site_rank(site)
            moved[..., self.slices[site]] = value.flatten(start).double()
        return self.joint.log_ratio(moved, vector)
