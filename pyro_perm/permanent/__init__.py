r"""Permanents of positive matrices in the log domain: exact, Bethe, and sampled.

Everything here is a pure function of a batch of matrices of log weights. The
permanent sums over all permutations :math:`g` of the columns,

.. math:: \log \operatorname{perm}(e^L) = \log \sum_g \exp \sum_i L_{i, g(i)} .
"""

from pyro_perm.permanent.bethe import BethePermanent, bethe_permanent, log_bethe_permanent
from pyro_perm.permanent.blocks import BlockPermanent, log_permanent_by_blocks, permanent_by_blocks
from pyro_perm.permanent.exact import log_permanent, permutation_marginals
from pyro_perm.permanent.sinkhorn import Sinkhorn, sinkhorn

__all__ = [
    "BethePermanent",
    "BlockPermanent",
    "Sinkhorn",
    "bethe_permanent",
    "log_bethe_permanent",
    "log_permanent",
    "log_permanent_by_blocks",
    "permanent_by_blocks",
    "permutation_marginals",
    "sinkhorn",
]
