"""The evidence that a Laplace approximation leaves out: its mode has equivalent copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_perm.estimators import Estimator
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.bounds._table import Row, table
from pyro_perm.posterior.bounds.certificate import MutualInformation
from pyro_perm.posterior.bounds.intervals import mutual_information
from pyro_perm.program.call import refuse_shared_keywords


@dataclass(frozen=True, repr=False)
class LaplaceEvidence:
    """Laplace's estimate of ``log p(D)`` with what its symmetrization adds, in nats.

    Attributes:
        base: Laplace's estimate, of one mode.
        mutual_information: the certified interval for ``I(g; w)`` of its Gaussian.
    """

    base: float
    mutual_information: MutualInformation

    @property
    def lower(self) -> float:
        """``base`` and the lower bound on ``I(g; w)``."""
        return self.base + self.mutual_information.lower

    @property
    def upper(self) -> float:
        """``base`` and the upper bound on ``I(g; w)``."""
        return self.base + self.mutual_information.upper

    def __repr__(self) -> str:
        information = self.mutual_information
        rows = [
            Row("log p(D) by Laplace", self.base, 0.0),
            Row("with I, lower bound", self.lower, information.lower_standard_error),
            Row("with I, upper bound", self.upper, information.upper_standard_error),
            *information.rows,
        ]
        return table(information.log_order, information.num_samples, rows, information.skipped)


@refuse_shared_keywords
def log_evidence_laplace(
    guide: Callable[..., Any],
    *args: Any,
    log_marginal_likelihood: float | Tensor,
    num_samples: int = 64,
    estimator: Estimator | None = None,
    symmetry: PermutationSymmetry | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> LaplaceEvidence:
    r"""Laplace's estimate of the evidence, corrected for equivalent modes.

    Laplace's method expands the log joint at one mode, ``log p(D, w) = log Z + log q(w)`` with the
    Gaussian ``q`` and the estimate ``Z`` of the evidence (MacKay 1992). It misses the mode's images
    under the group. With the same expansion, the ELBO of the symmetrized Gaussian is

    ``E_q[log p(D, w) - log q^G(w)] = log Z + I(g; w)``,

    between ``log Z``, where the images coincide, and ``log Z + log |G|``, where they are apart.
    ``I`` is certified; the expansion is as good as Laplace's. Wider networks gain more, so that the
    correction changes which width is picked. Usage:

    >>> import torch
    >>> from torch import nn
    >>> import pyro_perm as pp
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(1, 3), nn.GELU(), nn.Linear(3, 1))
    >>> x, y = torch.randn(20, 1), torch.randn(20, 1)
    >>> found = {name: (p, 0.1 * torch.ones_like(p)) for name, p in network.named_parameters()}
    >>> noise = pp.likelihoods.gaussian(0.5)
    >>> model, guide = pp.gaussian_posterior(network, found, likelihood=noise)
    >>> evidence = pp.log_evidence_laplace(
    ...     guide, x, y, log_marginal_likelihood=-35.0, num_samples=50, progress=False
    ... )
    >>> round(evidence.lower, 1), round(evidence.upper, 1)  # -35 + log 3!
    (-33.2, -33.2)

    :param guide: the Gaussian, as :func:`gaussian_posterior` makes it of what
        ``pyro_perm.readers.from_laplace`` reads.
    :param args: arguments of the model, ``x, y``; ``kwargs`` likewise.
    :param log_marginal_likelihood: Laplace's estimate, in nats: ``la.log_marginal_likelihood()``.
    :param num_samples: of the guide; ``estimator``, ``symmetry``, ``max_seconds`` and ``progress``
        likewise as in :func:`mutual_information`.
    :raises ValueError: as :func:`mutual_information` does.
    """
    information = mutual_information(
        guide,
        *args,
        num_samples=num_samples,
        estimator=estimator,
        symmetry=symmetry,
        max_seconds=max_seconds,
        progress=progress,
        **kwargs,
    )
    return LaplaceEvidence(float(torch.as_tensor(log_marginal_likelihood)), information)
