"""How ``log q^G(w)`` is estimated: one estimator a file."""

from pyro_perm.estimators.annealed import AnnealedImportanceSampled
from pyro_perm.estimators.bethe import Bethe
from pyro_perm.estimators.estimator import Bounds, Estimator
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
]
