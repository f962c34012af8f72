"""How ``log q^G(w)`` is estimated: one estimator a file.

Ten units that are far apart tell their permutation, so that ``I(g; w) = log 10! = 15.10``. Uniform
permutations find at most ``log K`` of it:

>>> import torch
>>> import pyro_perm as pp
>>> from pyro_perm.density.factorized import FactorizedDensity
>>> symmetry = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (10,)})
>>> sites = {"w": 100 * torch.arange(10.0)}, {"w": 100 * torch.arange(10.0)}, {"w": torch.ones(10)}
>>> density = FactorizedDensity(symmetry.group, *sites, batch_shape=torch.Size())
>>> for estimator in (pp.Exact(), pp.Bethe(), pp.ImportanceSampled(8), pp.InfoNCE(8)):
...     print(f"{-estimator.log_ratio(density):5.2f} {estimator}")
15.10 Exact()
15.10 Bethe()
15.10 ImportanceSampled(num_permutations=8)
 2.08 InfoNCE(num_permutations=8)
"""

from pyro_perm.estimators.annealed import AnnealedImportanceSampled
from pyro_perm.estimators.bethe import Bethe
from pyro_perm.estimators.estimator import (
    Bounds,
    Estimator,
    register_estimator,
    registered_estimators,
)
from pyro_perm.estimators.exact import Exact
from pyro_perm.estimators.importance_sampled import ImportanceSampled
from pyro_perm.estimators.info_nce import InfoNCE
from pyro_perm.estimators.leave_one_out import LeaveOneOut
from pyro_perm.estimators.sampled_chain_rule import SampledChainRule

__all__ = [
    "AnnealedImportanceSampled",
    "Bethe",
    "Bounds",
    "Estimator",
    "Exact",
    "ImportanceSampled",
    "InfoNCE",
    "LeaveOneOut",
    "SampledChainRule",
    "register_estimator",
    "registered_estimators",
]
