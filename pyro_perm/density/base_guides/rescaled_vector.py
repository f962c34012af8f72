"""Guides that draw one vector and rescale it into the sites."""

from pyro.infer.autoguide import AutoGaussian

from pyro_perm.density.base_guides.reader import Refusal

RESCALED_VECTORS = Refusal(
    (AutoGaussian,),
    "it rescales the vector that it draws into the sites; use AutoMultivariateNormal, or "
    "AutoNormal",
)
