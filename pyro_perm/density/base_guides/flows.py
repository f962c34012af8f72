"""Guides that push a Gaussian vector through invertible networks."""

from pyro.infer.autoguide import AutoNormalizingFlow

from pyro_perm.density.base_guides.reader import Refusal

FLOWS = Refusal(
    (AutoNormalizingFlow,),
    "its density at permuted values takes the inverse of its flow, which it need not have; use "
    "AutoNormal, or AutoMultivariateNormal for dependent sites",
)
