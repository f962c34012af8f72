r"""How far the Bethe permanent lies below the permanent, from its marginals.

Where all :math:`n` rows coincide, the permanent of equal entries is known, and

.. math:: \log n! - \log \operatorname{perm}_B
          = \log n! - n \log n - n (n - 1) \log (1 - 1/n)
          \approx \tfrac{1}{2} \log (2 \pi n / e) .

It is nearly the same wherever rows overlap, however weakly: what belief propagation misses is that
the rows and the columns are all taken, and this is one fact about all rows of a block. So
:math:`n` becomes the number of rows that are uncertain of their column,

.. math:: \sum_i \frac{u_i}{u_i + \epsilon} \Big/ \frac{1 - 1/n}{1 - 1/n + \epsilon},
          \qquad u_i = 1 - \sum_j P_{ij}^2 ,

which is :math:`n` where rows coincide, and 0 where they are apart.
"""

from typing import Any

import numpy as np
import scipy  # loads its parts when they are first used
from numpy.typing import NDArray

# A row as uncertain as this counts half.
_UNCERTAIN = 0.01


def log_bethe_bias(marginals: NDArray[Any]) -> NDArray[np.float64]:
    """Estimate of ``log perm - log perm_B``, in nats.

    :param marginals: of belief propagation on a block of rows that overlap, shape (..., n, n).
    :returns: shape (...).
    """
    certainty = np.einsum("...ij,...ij->...i", marginals, marginals)
    uncertainty = np.maximum(1 - certainty.astype(np.float64), 0.0)
    counted = (uncertainty / (uncertainty + _UNCERTAIN)).sum(-1)
    largest = 1 - 1 / marginals.shape[-1]
    rows = np.maximum(counted * (1 + _UNCERTAIN / largest), 1.0)
    others = rows - 1
    # 0 log 0 = 0, where a single row is uncertain.
    xlogy = scipy.special.xlogy(others, others)
    bias: NDArray[np.float64] = scipy.special.gammaln(rows + 1) - rows * (
        xlogy - (others - 1) * np.log(rows)
    )
    return bias
