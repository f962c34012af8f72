r"""The upper bound that matches InfoNCE: uniform permutations without the true one.

``1/K sum_j q(g_j w)`` is unbiased for ``q^G(w)``, so by Jensen its logarithm lies below
``log q^G(w)`` in expectation, and ``I(g; w)`` below the estimate (Poole et al. 2019, Eq. 13).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.estimators import _costs
from pyro_perm.estimators.estimator import Estimator, register_estimator, require_positive
from pyro_perm.estimators.info_nce import uniform_log_ratios


@register_estimator
@dataclass(frozen=True)
class LeaveOneOut(Estimator):
    """Upper bound on ``I(g; w)`` from uniform permutations, the true one left out.

    :param num_permutations: ``K``, the number of uniform permutations.
    :raises ValueError: if it is not a positive int.
    """

    num_permutations: int

    is_upper_bound = True

    def __post_init__(self) -> None:
        require_positive("num_permutations", self.num_permutations)

    def cost(self, density: Density) -> float:
        """A gather for each permutation."""
        return _costs.all_unit_pairs(density) + self.num_permutations * _costs.entries(density)

    def log_ratio(self, density: Density) -> Tensor:
        """``log 1/K sum_j q(g_j w) / q(w)``."""
        ratios = uniform_log_ratios(density, self.num_permutations)
        return ratios.logsumexp(0) - math.log(self.num_permutations)
