"""What a reader of base guides says about a site, and what a refusal says about a guide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.density.correlated import JointDistribution

Sites = Mapping[str, Mapping[str, Any]]
Normals = Mapping[str, tuple[Tensor, Tensor]]
"""Site -> loc and scale of the Normals that its entries are drawn from, in unconstrained space."""


class JointDraw(NamedTuple):
    """A vector that was drawn as one, and of which several sites are parts.

    Attributes:
        distribution: of the vector, in unconstrained space.
        vector: what was drawn, shape ``(*batch, size)``.
        slices: site -> where its value lies in the vector, flattened.
    """

    distribution: JointDistribution
    vector: Tensor
    slices: Mapping[str, slice]


class Drawn(NamedTuple):
    """How a site was drawn: from independent Normals, or as part of a vector drawn jointly.

    Attributes:
        node: name of the traced node that holds its density.
        value: what was drawn, shape ``(*batch, *shape)`` for a site of this shape in unconstrained
            space.
        loc: of the Normals, or the means of a vector's marginals; the same shape, or without the
            batch.
        scale: as ``loc``, standard deviations.
        joint: what the site is part of, if its entries are not independent of other sites.
    """

    node: str
    value: Tensor
    loc: Tensor
    scale: Tensor
    joint: JointDraw | None = None


@dataclass(frozen=True)
class Construction:
    """What a guide is made anew from, beside its model, its sites and its parameters.

    Attributes:
        options: attributes that its constructor takes by the same names; numbers, strings and None.
        constraints: attributes that say how its parameters are constrained.
        takes_plates: whether its constructor takes ``create_plates``.
    """

    options: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    takes_plates: bool = False


Kinds = Mapping[type[AutoGuide], Construction | None]


class Reader(ABC):
    """Reads off its trace how one kind of guide draws a site.

    Attributes:
        kinds: the guides that draw this way, each with what :func:`~pyro_perm.load` makes it from;
            None where no file holds that.
    """

    kinds: ClassVar[Kinds]

    @abstractmethod
    def node_of(self, site: str, sites: Sites) -> str | None:
        """Name of the traced node that holds the density of a model site.

        :param sites: trace nodes of the base guide.
        :returns: None if the site was drawn in another way.
        """

    def obstacle(self, node: str, sites: Sites) -> str | None:
        """Why the density at other values is not known, although it is at those drawn.

        Asked at the first call.

        :param node: the name that :meth:`node_of` returned.
        :param sites: trace nodes of the base guide.
        :returns: the rest of a sentence about a site, with the fix; None if it is known.
        """
        return None

    @abstractmethod
    def read(self, site: str, node: str, sites: Sites, rank: int) -> Drawn:
        """How a site was drawn.

        :param node: the name that :meth:`node_of` returned.
        :param sites: trace nodes of the base guide.
        :param rank: number of dimensions of the site in unconstrained space, plates included.
        """

    def normals(self, guide: AutoGuide) -> Callable[[], Normals] | None:
        """What tells all Normals that a guide draws from, without a run of the guide.

        Losses without traces and distances ask for it. It is for guides that draw each latent site
        of the model by itself, and pass the draw through :func:`~torch.distributions.biject_to` of
        the site's support.

        :param guide: a guide of any kind, which need not have run.
        :returns: a function, for when the guide has run, of all sites in their order; loc and scale
            are of the shape of the draw. It makes the param statements of a call of the guide where
            there are handlers to see them (:func:`~pyro.nn.module.pyro_method`). None if the guide
            is of another kind, or draws in another way.
        """
        return None


@dataclass(frozen=True)
class Refusal:
    """Why some guides cannot be symmetrized.

    Attributes:
        kinds: the guides.
        reason: the rest of a sentence that names the guide, with the fix.
    """

    kinds: tuple[type, ...]
    reason: str
