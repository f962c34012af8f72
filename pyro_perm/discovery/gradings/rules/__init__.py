"""How operations treat the signs and scales of their arguments: one small file per family.

An operation without a rule must not change at all. Rules serve both gradings, except where a
function's values at ``-x`` and at ``c x`` with ``c > 0`` follow different laws.
"""

from pyro_perm.discovery.gradings.rules import (  # noqa: F401  (importing fills the tables)
    arithmetic,
    comparison,
    contraction,
    indexing,
    movement,
    normalization,
    overlay,
    pointwise,
    reduction,
    scattering,
    spatial,
)
from pyro_perm.discovery.gradings.rules.table import SCALES, SIGNS, Grading, GradingRules

__all__ = ["SCALES", "SIGNS", "Grading", "GradingRules"]
