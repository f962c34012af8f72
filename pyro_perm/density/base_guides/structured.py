"""Guides whose sites may depend on each other."""

from pyro.infer.autoguide import AutoStructured

from pyro_perm.density.base_guides.reader import Refusal

STRUCTURED = Refusal(
    (AutoStructured,),
    "it computes sites from each other, and their density at permuted values is not known; use "
    "AutoNormal, or AutoMultivariateNormal for dependent sites",
)
