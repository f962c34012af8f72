"""Guides that push a Gaussian vector through invertible transforms."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.infer.autoguide import AutoNormalizingFlow
from torch.distributions import TransformedDistribution

from pyro_perm.density.base_guides.one_vector import OneVector, Vector
from pyro_perm.density.base_guides.reader import Kinds, Sites
from pyro_perm.density.flows import Flow
from pyro_perm.density.gaussians import as_normal


class OneFlow(OneVector):
    """Reads sites that are parts of a vector that a normalizing flow computes."""

    kinds: ClassVar[Kinds] = {AutoNormalizingFlow: None}  # Its constructor takes a function.

    def is_readable(self, distribution: Any) -> bool:
        """Whether transforms are applied to independent Normals."""
        is_flow = isinstance(distribution, TransformedDistribution)
        return is_flow and as_normal(distribution.base_dist) is not None

    def obstacle(self, node: str, sites: Sites) -> str | None:
        """Transforms without an inverse."""
        transform = _flow(sites[node]["fn"]).without_inverse()
        if transform is None:
            return None
        return (
            f"is drawn by a flow whose {type(transform).__name__} has no inverse, so that its "
            "density at permuted values is not known: take transforms with an inverse, as those "
            "of AutoIAFNormal, or AutoMultivariateNormal"
        )

    def vector_of(self, distribution: Any) -> Vector:
        """The flow, and roughly the means and deviations of its entries."""
        flow = _flow(distribution)
        return Vector(*flow.moments(), flow)


def _flow(distribution: TransformedDistribution) -> Flow:
    base = as_normal(distribution.base_dist)
    assert base is not None
    return Flow.of(distribution, base)
