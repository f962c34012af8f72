"""How each operation constrains the axes of its tensors: one small file per family."""

from pyro_perm.discovery.permutations.rules import (  # noqa: F401  (importing fills the table)
    contraction,
    indexing,
    layout,
    linear_algebra,
    losses,
    normalization,
    ordering,
    overlay,
    pointwise,
    rearranging,
    reduction,
    scattering,
    sparse,
    spatial,
    spectral,
)
from pyro_perm.discovery.permutations.rules.table import AxisRules, register_axis_rule, rule_for

__all__ = ["AxisRules", "register_axis_rule", "rule_for"]
