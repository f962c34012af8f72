"""Guides that draw each site by itself from a Normal.

``AutoNormal`` draws a site in unconstrained space, as ``<site>_unconstrained``, and passes it on;
others, such as TyXe's or one written out, draw the site itself.
"""

from __future__ import annotations

import torch
from pyro.infer.autoguide import AutoNormal

from pyro_perm.density.base_guides.reader import Drawn, Reader, Sites
from pyro_perm.density.gaussians import as_normal, unexpanded


class IndependentNormals(Reader):
    """Reads sites that a Normal of their own was drawn for."""

    kinds = (AutoNormal,)

    def node_of(self, site: str, sites: Sites) -> str | None:
        """The site's auxiliary node, or its own."""
        node = unconstrained_node(site)
        node = node if node in sites else site
        return node if as_normal(sites[node]["fn"]) is not None else None

    def read(self, site: str, node: str, sites: Sites, rank: int) -> Drawn:
        """Value, loc and scale of the Normal."""
        normal = as_normal(sites[node]["fn"])
        assert normal is not None
        loc, scale = (unexpanded(tensor, rank) for tensor in (normal.loc, normal.scale))
        if loc.dim() != scale.dim():  # Particles share one of them.
            loc, scale = torch.broadcast_tensors(loc, scale)
        return Drawn(node, sites[node]["value"], loc, scale)


def unconstrained_node(site: str) -> str:
    """Name of the auxiliary node that guides such as ``AutoNormal`` have for a site."""
    return f"{site}_unconstrained"
