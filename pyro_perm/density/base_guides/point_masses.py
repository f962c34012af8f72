"""Guides that are a point."""

from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation

from pyro_perm.density.base_guides.reader import Refusal

_NO_DENSITY = "a point mass has no density to average over permutations; use AutoNormal"

POINT_MASSES = Refusal((AutoDelta,), _NO_DENSITY)
LAPLACE = Refusal(
    (AutoLaplaceApproximation,),
    f"{_NO_DENSITY}, or pyro_perm.laplace_approximation(guide, *args) of a trained one",
)
