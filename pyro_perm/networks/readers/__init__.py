"""Posteriors of other libraries, read as Gaussians for :func:`pyro_perm.gaussian_posterior`.

One file a library. None imports its library, but for a function where that alone knows how a state
is laid out.
"""

from pyro_perm.networks.readers.bayesian_torch import from_bayesian_torch
from pyro_perm.networks.readers.ivon import from_ivon
from pyro_perm.networks.readers.laplace_torch import from_laplace, prior_of_laplace
from pyro_perm.networks.readers.posteriors import from_posteriors
from pyro_perm.networks.readers.swag import from_swag
from pyro_perm.networks.readers.torch_uncertainty import from_torch_uncertainty
from pyro_perm.networks.readers.tyxe import from_tyxe

__all__ = [
    "from_bayesian_torch",
    "from_ivon",
    "from_laplace",
    "from_posteriors",
    "from_swag",
    "from_torch_uncertainty",
    "from_tyxe",
    "prior_of_laplace",
]
