"""The kinds of base guides: how the density of each is read off its traced sites, or why not.

Each kind is one short file. One that can be symmetrized has a ``Reader``, which tells how it drew a
site, and is listed in ``READERS``; one that cannot has a ``Refusal``, in ``REFUSALS``.
"""

from pyro_perm.density.base_guides.reading import (
    base_node,
    density_of,
    read_density,
    read_sites,
    remove_padding,
    require_density,
)
from pyro_perm.density.base_guides.registry import (
    REFUSALS,
    constructions,
    normals_of,
    require_symmetrizable,
)

__all__ = [
    "REFUSALS",
    "base_node",
    "constructions",
    "density_of",
    "normals_of",
    "read_density",
    "read_sites",
    "remove_padding",
    "require_density",
    "require_symmetrizable",
]
