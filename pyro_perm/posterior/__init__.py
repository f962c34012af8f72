"""What comes after training."""

from pyro_perm.posterior.bounds.certificate import MutualInformation
from pyro_perm.posterior.bounds.intervals import (
    SymmetrizedELBO,
    mutual_information,
    symmetrized_elbo,
)

__all__ = ["MutualInformation", "SymmetrizedELBO", "mutual_information", "symmetrized_elbo"]
