"""Guides that draw each site by itself from a Normal.

``AutoNormal`` draws a site in unconstrained space, as ``<site>_unconstrained``, and passes it on;
others, such as TyXe's or one written out, draw the site itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.poutine.runtime import am_i_wrapped

from pyro_perm.density.base_guides.reader import Construction, Drawn, Kinds, Normals, Reader, Sites
from pyro_perm.density.gaussians import as_normal, drop_expanded
from pyro_perm.program._pyro_internals import (
    UnconstrainedParameter,
    announced_loc_and_scale,
    draws_by_locs_and_scales,
)


class IndependentNormals(Reader):
    """Reads sites that a Normal of their own was drawn for."""

    kinds: ClassVar[Kinds] = {
        AutoNormal: Construction(constraints=("scale_constraint",), takes_plates=True)
    }

    def node_of(self, site: str, sites: Sites) -> str | None:
        """The site's auxiliary node, or its own."""
        node = unconstrained_node(site)
        node = node if node in sites else site
        return node if as_normal(sites[node]["fn"]) is not None else None

    def read(self, site: str, node: str, sites: Sites, rank: int) -> Drawn:
        """Value, loc and scale of the Normal."""
        normal = as_normal(sites[node]["fn"])
        assert normal is not None
        loc, scale = (drop_expanded(tensor, rank) for tensor in (normal.loc, normal.scale))
        if loc.dim() != scale.dim():  # Particles share one of them.
            loc, scale = torch.broadcast_tensors(loc, scale)
        return Drawn(node, sites[node]["value"], loc, scale)

    def normals(self, guide: AutoGuide) -> Callable[[], Normals] | None:
        """Those that an ``AutoNormal``'s parameters say, unless a subclass draws otherwise."""
        if isinstance(guide, AutoNormal) and draws_by_locs_and_scales(guide):
            return _LocsAndScales(guide)
        return None


class _LocsAndScales:
    """The Normals of an ``AutoNormal``, from its parameters."""

    def __init__(self, guide: AutoNormal) -> None:
        self._guide = guide

    def __call__(self) -> Normals:
        if am_i_wrapped():  # SVI learns of the parameters by their statements.
            return announced_loc_and_scale(self._guide, self._parameters)
        return {
            site: (loc.constrained(), scale.constrained())
            for site, (loc, scale) in self._parameters.items()
        }

    @cached_property
    def _parameters(self) -> dict[str, tuple[UnconstrainedParameter, UnconstrainedParameter]]:
        """Where the parameters of each site are, known once the guide has run."""
        guide, prototype = self._guide, self._guide.prototype_trace
        assert prototype is not None
        return {
            site: (
                UnconstrainedParameter.of(guide.locs, site),
                UnconstrainedParameter.of(guide.scales, site),
            )
            for site, _ in prototype.iter_stochastic_nodes()
        }


def unconstrained_node(site: str) -> str:
    """Name of the auxiliary node that guides such as ``AutoNormal`` have for a site."""
    return f"{site}_unconstrained"
