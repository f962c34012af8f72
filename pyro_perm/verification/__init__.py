"""Numerical check of a group on a model, independent of how the group was found."""

from pyro_perm.verification.checks import check_groups, confirm, verify
from pyro_perm.verification.group_check import GroupCheck
from pyro_perm.verification.log_density import SymmetryVerificationError

__all__ = ["GroupCheck", "SymmetryVerificationError", "check_groups", "confirm", "verify"]
