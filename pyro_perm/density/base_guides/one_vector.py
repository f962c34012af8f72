"""Guides that draw several sites as one vector, of which the sites are parts.

A site is a part of the vector if it is a view into the vector's memory. What was computed from the
vector, by a constraint's transform or by the guide, is not, and has another density.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from pyro.distributions import Delta
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from pyro_perm.density.base_guides.reader import (
    Construction,
    Drawn,
    JointDraw,
    Kinds,
    Reader,
    Sites,
)
from pyro_perm.density.correlated import JointDistribution
from pyro_perm.density.gaussians import GaussianVector, JointGaussian, as_normal, marginals
from pyro_perm.density.moved_delta import as_drawn


class Vector(NamedTuple):
    """The distribution of a vector.

    Attributes:
        locs: of its entries' marginals, shape ``(*batch, size)``, or without the batch.
        scales: as ``locs``.
        joint: the distribution, if its entries are not independent.
    """

    locs: Tensor
    scales: Tensor
    joint: JointDistribution | None = None


class OneVector(Reader):
    """Reads sites that are parts of a vector; what this was drawn from is up to subclasses."""

    @abstractmethod
    def is_readable(self, distribution: Any) -> bool:
        """Whether a vector was drawn from something whose density is known here."""

    @abstractmethod
    def vector_of(self, distribution: Any) -> Vector:
        """What a vector was drawn from."""

    def node_of(self, site: str, sites: Sites) -> str | None:
        """The auxiliary node of the vector."""
        vectors = (
            name
            for name, node in sites.items()
            if is_auxiliary_vector(node) and self.is_readable(node["fn"])
        )
        return next((name for name in vectors if _part(sites[name], sites[site])), None)

    def read(self, site: str, node: str, sites: Sites, rank: int) -> Drawn:
        """The site's part of the vector, and of the marginals' locs and scales."""
        drawn, vector = sites[node]["value"], self.vector_of(sites[node]["fn"])
        parts = {other: _part(sites[node], sites[other]) for other in sites if other != node}
        slices = {other: part for other, part in parts.items() if part is not None}
        value = as_drawn(sites[site]["fn"])
        loc, scale = (
            tensor[..., slices[site]].reshape(
                value.shape if tensor.dim() > 1 else value.shape[-rank:]
            )
            for tensor in (vector.locs, vector.scales)
        )
        joint = None if vector.joint is None else JointDraw(vector.joint, drawn, slices)
        return Drawn(node, value, loc, scale, joint)


class OneGaussian(OneVector):
    """Reads sites that are parts of a Gaussian vector."""

    kinds: ClassVar[Kinds] = {
        AutoDiagonalNormal: Construction(constraints=("scale_constraint",)),
        AutoLowRankMultivariateNormal: Construction(
            options=("rank",), constraints=("scale_constraint",)
        ),
        AutoMultivariateNormal: Construction(
            constraints=("scale_constraint", "scale_tril_constraint")
        ),
    }

    def is_readable(self, distribution: Any) -> bool:
        """Whether it is Gaussian."""
        return isinstance(distribution, JointGaussian) or as_normal(distribution) is not None

    def vector_of(self, distribution: Any) -> Vector:
        """Its marginals, and itself unless its entries are independent."""
        if isinstance(distribution, JointGaussian):
            return Vector(*marginals(distribution), GaussianVector(distribution))
        normal = as_normal(distribution)
        assert normal is not None
        return Vector(*marginals(normal))


def part_of(vector: Tensor, value: Tensor) -> slice | None:
    """Where a value lies in the last dimension of a vector, if it is a view into its memory.

    :param vector: shape ``(*batch, size)``.
    :param value: shape ``(*batch, *shape)``.
    """
    vector, value = detach_provenance(vector), detach_provenance(value)
    num, rest = value.numel(), vector.shape[:-1].numel()
    if not num or not rest or num % rest:
        return None
    if vector.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
        return None
    start = (value.storage_offset() - vector.storage_offset()) // max(vector.stride(-1), 1)
    part = slice(start, start + num // rest)
    try:
        view = vector[..., part].view(value.shape)
    except RuntimeError:
        return None
    same = view.storage_offset() == value.storage_offset() and view.stride() == value.stride()
    return part if same else None


def is_auxiliary_vector(node: Mapping[str, Any]) -> bool:
    """Whether a traced node is a vector that the model does not have."""
    auxiliary = (node.get("infer") or {}).get("is_auxiliary")
    return bool(auxiliary) and len(node["fn"].event_shape) == 1


def _part(node: Mapping[str, Any], other: Mapping[str, Any]) -> slice | None:
    point = other.get("fn")
    return part_of(node["value"], as_drawn(point)) if isinstance(point, Delta) else None
