"""Which base guides there are: a new kind is one file, and one line here.

The first reader that knows how a site was drawn reads it: those of single sites come before those
of vectors, for a site that is drawn by itself is a vector too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import AutoGuide

from pyro_perm.density.base_guides.flows import OneFlow
from pyro_perm.density.base_guides.independent_normals import IndependentNormals
from pyro_perm.density.base_guides.messengers import MESSENGERS
from pyro_perm.density.base_guides.one_vector import OneGaussian
from pyro_perm.density.base_guides.point_masses import LAPLACE, POINT_MASSES
from pyro_perm.density.base_guides.reader import Construction, Normals, Reader, Refusal
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


def normals_of(guide: AutoGuide) -> Callable[[], Normals] | None:
    """What tells all Normals that a guide draws from without a run, as its reader knows it.

    :returns: None if no reader does, see :meth:`Reader.normals`.
    """
    found = (reader.normals(guide) for reader in READERS)
    return next((normals for normals in found if normals is not None), None)


def constructions() -> dict[type[AutoGuide], Construction]:
    """The guides that files can hold, and what each is made anew from."""
    kinds = (kind for reader in READERS for kind in reader.kinds.items())
    return {kind: construction for kind, construction in kinds if construction is not None}


def readable_kinds() -> str:
    """The guides whose density is read here, as an enumeration."""
    *names, last = (kind.__name__ for reader in READERS for kind in reader.kinds)
    return f"{', '.join(names)} or {last}"
