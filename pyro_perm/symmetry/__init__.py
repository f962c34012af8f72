"""What the group is: its action on latent sites, its discovery and its numerical verification."""

from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.discovery.find import find_symmetry
from pyro_perm.symmetry.discovery.rules import register_axis_rule
from pyro_perm.symmetry.permutation_symmetry import PermutationSymmetry
from pyro_perm.symmetry.verification import SymmetryVerificationError

__all__ = [
    "Axis",
    "PermutationSymmetry",
    "SymmetryVerificationError",
    "find_symmetry",
    "register_axis_rule",
]
