"""Reading the group off the operations of a model."""

from pyro_perm.discovery.find import find_symmetry
from pyro_perm.discovery.permutations.rules import register_axis_rule

__all__ = ["find_symmetry", "register_axis_rule"]
