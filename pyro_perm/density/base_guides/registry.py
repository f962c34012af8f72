"""Which base guides there are: a new kind is one file, and one line here.

The first reader that knows how a site was drawn reads it: those of single sites come before those
of vectors, for a site that is drawn by itself is a vector too.
"""

from __future__ import annotations

from typing import Any

from pyro_perm.density.base_guides.flows import OneFlow
from pyro_perm.density.base_guides.independent_normals import IndependentNormals
from pyro_perm.density.base_guides.messengers import MESSENGERS
from pyro_perm.density.base_guides.one_vector import OneGaussian
from pyro_perm.density.base_guides.point_masses import LAPLACE, POINT_MASSES
from pyro_perm.density.base_guides.reader import Reader, Refusal
from pyro_perm.density.base_guides.rescaled_vector import RESCALED_VECTORS
from pyro_perm.density.base_guides.structured import STRUCTURED

READERS: tuple[Reader, ...] = (IndependentNormals(), OneGaussian(), OneFlow())
REFUSALS: tuple[Refusal, ...] = (MESSENGERS, POINT_MASSES, LAPLACE, RESCALED_VECTORS, STRUCTURED)


def require_symmetrizable(guide: Any) -> None:
    """Refuse guides of a kind that cannot be symmetrized.

    :raises TypeError: naming the guide, with the reason and the fix.
    """
    for refusal in REFUSALS:
        if isinstance(guide, refusal.kinds):
            raise TypeError(f"cannot symmetrize {type(guide).__name__}: {refusal.reason}")


def readable_kinds() -> str:
    """The guides whose density is read here, as an enumeration."""
    *names, last = (kind.__name__ for reader in READERS for kind in reader.kinds)
    return f"{', '.join(names)} or {last}"
