"""Reading a model's permutation symmetry off the computation of its log joint."""

from pyro_perm.symmetry.discovery.find import find_symmetry
from pyro_perm.symmetry.discovery.rules import register_axis_rule

__all__ = ["find_symmetry", "register_axis_rule"]
