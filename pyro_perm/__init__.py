"""Permutation-invariant variational posteriors for Bayesian neural networks in Pyro."""

from pyro_perm._version import __version__
from pyro_perm.density.density import Density
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
from pyro_perm.functional.elbo import FunctionalMeanField_ELBO, FunctionalSymmetrized_ELBO
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.initialization import init_to_fan_in
from pyro_perm.laplace import laplace_approximation
from pyro_perm.networks import likelihoods, priors, readers
from pyro_perm.networks.bayesian import BayesianNetwork, bayesian
from pyro_perm.networks.gaussian import (
    DenseGaussian,
    GaussianPosterior,
    LowRankGaussian,
    gaussian_posterior,
)
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
from pyro_perm.posterior.bounds.laplace_evidence import LaplaceEvidence, log_evidence_laplace
from pyro_perm.posterior.comparison import Comparison, compare
from pyro_perm.posterior.executors import evaluate_each
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
from pyro_perm.saving import load, save
from pyro_perm.symmetry import Axis
from pyro_perm.training.annealed_kl import AnnealedKL, cyclical_warm_up, linear_warm_up
from pyro_perm.training.fit import fit
from pyro_perm.training.history import History
from pyro_perm.training.local_reparametrization import LocalReparametrization
from pyro_perm.training.sticking_the_landing import StickingTheLanding
from pyro_perm.verification import SymmetryVerificationError

__all__ = [
    "Alignment",
    "AnnealedImportanceSampled",
    "AnnealedKL",
    "AutoSymmetrized",
    "Axis",
    "BayesianNetwork",
    "Bethe",
    "Bounds",
    "Comparison",
    "DenseGaussian",
    "Density",
    "Estimator",
    "Evidence",
    "Exact",
    "FunctionalMeanField_ELBO",
    "FunctionalSymmetrized_ELBO",
    "GaussianPosterior",
    "History",
    "ImportanceSampled",
    "InfoNCE",
    "LaplaceEvidence",
    "LeaveOneOut",
    "LocalReparametrization",
    "LowRankGaussian",
    "MutualInformation",
    "PermutationSymmetry",
    "PosteriorDraws",
    "Prediction",
    "SampledChainRule",
    "StickingTheLanding",
    "SymmetrizedELBO",
    "SymmetryVerificationError",
    "TraceSymmetrized_ELBO",
    "__version__",
    "align",
    "bayesian",
    "canonical_order",
    "compare",
    "convergence_diagnostics",
    "cyclical_warm_up",
    "evaluate_each",
    "figures",
    "find_symmetry",
    "fit",
    "gaussian_posterior",
    "init_to_fan_in",
    "interpolation_barrier",
    "laplace_approximation",
    "likelihoods",
    "linear_warm_up",
    "load",
    "log_evidence",
    "log_evidence_laplace",
    "metrics",
    "mutual_information",
    "negative_log_joint",
    "negative_log_likelihood",
    "predict",
    "priors",
    "readers",
    "register_axis_rule",
    "register_estimator",
    "reset_statistics",
    "save",
    "symmetrized_elbo",
    "to_arviz",
    "unit_overlap",
    "wasserstein_distance",
]
