"""What comes after training."""

from pyro_perm.posterior.bounds.intervals import (
    SymmetrizedELBO,
    mutual_information,
    symmetrized_elbo,
)
from pyro_perm.posterior.bounds.portfolio import MutualInformation

__all__ = ["MutualInformation", "SymmetrizedELBO", "mutual_information", "symmetrized_elbo"]
