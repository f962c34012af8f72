"""What comes after training."""

from pyro_perm.posterior.certificate import MutualInformation
from pyro_perm.posterior.evaluation import SymmetrizedELBO, mutual_information, symmetrized_elbo

__all__ = ["MutualInformation", "SymmetrizedELBO", "mutual_information", "symmetrized_elbo"]
