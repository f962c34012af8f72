"""Numerical check of a group on a model, independent of how the group was found."""

from pyro_perm.verification.checks import check_groups, confirm, verify
from pyro_perm.verification.errors import SymmetryVerificationError
from pyro_perm.verification.group_check import GroupCheck

__all__ = ["GroupCheck", "SymmetryVerificationError", "check_groups", "confirm", "verify"]
