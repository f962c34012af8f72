"""How each operation constrains the axes of its tensors: one small file per family."""

from pyro_perm.symmetry.discovery.rules import (  # noqa: F401  (importing fills the table)
    contraction,
    indexing,
    layout,
    normalization,
    ordering,
    pointwise,
    reduction,
    spatial,
)
from pyro_perm.symmetry.discovery.rules.table import AxisRules, register_axis_rule, rule_for

__all__ = ["AxisRules", "register_axis_rule", "rule_for"]
