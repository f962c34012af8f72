"""Permutation-invariant variational posteriors for Bayesian neural networks in Pyro."""

from pyro_perm._version import __version__
from pyro_perm.discovery import find_symmetry, register_axis_rule
from pyro_perm.elbo import TraceSymmetrized_ELBO
from pyro_perm.estimators import (
    AnnealedImportanceSampled,
    Bethe,
    Bounds,
    Estimator,
    Exact,
    ImportanceSampled,
    InfoNCE,
    LeaveOneOut,
    SampledChainRule,
    register_estimator,
)
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.initialization import init_to_fan_in
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior import (
    MutualInformation,
    SymmetrizedELBO,
    figures,
    metrics,
    mutual_information,
    symmetrized_elbo,
)
from pyro_perm.posterior.bounds.evidence import Evidence, log_evidence
from pyro_perm.posterior.export.arviz import to_arviz
from pyro_perm.posterior.modulo.alignment import Alignment, align, canonical_order
from pyro_perm.posterior.modulo.barrier import (
    interpolation_barrier,
    negative_log_joint,
    negative_log_likelihood,
)
from pyro_perm.posterior.modulo.convergence import convergence_diagnostics
from pyro_perm.posterior.modulo.distance import wasserstein_distance
from pyro_perm.posterior.modulo.overlap import unit_overlap
from pyro_perm.posterior.modulo.statistics import reset_statistics
from pyro_perm.posterior.prediction import Prediction, predict
from pyro_perm.sampling import PosteriorDraws
from pyro_perm.symmetry import Axis
from pyro_perm.verification import SymmetryVerificationError

__all__ = [
    "Alignment",
    "AnnealedImportanceSampled",
    "AutoSymmetrized",
    "Axis",
    "Bethe",
    "Bounds",
    "Estimator",
    "Evidence",
    "Exact",
    "ImportanceSampled",
    "InfoNCE",
    "LeaveOneOut",
    "MutualInformation",
    "PermutationSymmetry",
    "PosteriorDraws",
    "Prediction",
    "SampledChainRule",
    "SymmetrizedELBO",
    "SymmetryVerificationError",
    "TraceSymmetrized_ELBO",
    "__version__",
    "align",
    "canonical_order",
    "convergence_diagnostics",
    "figures",
    "find_symmetry",
    "init_to_fan_in",
    "interpolation_barrier",
    "log_evidence",
    "metrics",
    "mutual_information",
    "negative_log_joint",
    "negative_log_likelihood",
    "predict",
    "register_axis_rule",
    "register_estimator",
    "reset_statistics",
    "symmetrized_elbo",
    "to_arviz",
    "unit_overlap",
    "wasserstein_distance",
]
