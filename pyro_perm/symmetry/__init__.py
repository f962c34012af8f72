"""What the group is: its elements, and their action on latent sites."""

from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.elements import Element
from pyro_perm.symmetry.group import SymmetryGroup

__all__ = ["Axis", "Element", "SymmetryGroup"]
