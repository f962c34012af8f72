"""Gradients without the score term of the guide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from pyro_perm.closed_form import ClosedFormTrace_ELBO
from pyro_perm.functional.elbo import FunctionalMeanField_ELBO
from pyro_perm.training.wrapped_elbo import WrappedELBO

_IN_CLOSED_FORM = (ClosedFormTrace_ELBO, FunctionalMeanField_ELBO, TraceMeanField_ELBO)


class StickingTheLanding(WrappedELBO):
    r"""Leaves the score :math:`\nabla_\phi \log q_\phi(w)` of the guide out of the gradient.

    Its expectation is zero, and without it the gradient has no variance where the guide is the
    posterior (Roeder, Wu & Duvenaud 2017). For a symmetrized guide that is the score of ``q^G``,
    whose expectation is zero with an exact ``log q^G``; that of an estimate need not be.

    >>> from pyro.infer import Trace_ELBO
    >>> import pyro_perm as pp
    >>> elbo = pp.StickingTheLanding(Trace_ELBO())

    :param elbo: an ELBO that estimates the divergence by draws, such as
        :class:`~pyro.infer.Trace_ELBO`.
    :raises TypeError: if it has the divergence in closed form, or is compiled; at a step, if the
        guide draws from another distribution than a Gaussian.
    """

    def __init__(self, elbo: Any) -> None:
        if isinstance(elbo, _IN_CLOSED_FORM):
            raise TypeError(
                f"{type(elbo).__name__} has divergences in closed form, which have no score term "
                "to leave out: use Trace_ELBO, with a symmetrized guide where there is a symmetry"
            )
        super().__init__(elbo)

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """A step in which the guide's density is one with parameters held fixed."""
        with _FixedDensities():
            yield


class _FixedDensities(Messenger):
    """Draws reparametrized sites, and leaves a density of them whose parameters are constants."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or not getattr(msg["fn"], "has_rsample", False):
            return
        if isinstance(msg["fn"], dist.Unit):
            return  # A factor, such as log q^G - log q, which is made of what was drawn here.
        value = msg["fn"].rsample()
        if value.requires_grad:
            fixed = _hold_fixed(msg["fn"])
            if fixed is None:
                raise TypeError(
                    f"the guide draws site '{msg['name']}' from a {type(msg['fn']).__name__}, "
                    "whose score is not known here: leave out StickingTheLanding"
                )
            msg["value"], msg["done"], msg["fn"] = value, True, fixed


def _hold_fixed(fn: Any) -> Any:
    """A Gaussian or a point mass with its parameters held fixed; None for others."""
    if isinstance(fn, dist.Delta):
        return fn  # Whatever density it has is a function of its value.
    if isinstance(fn, Independent):
        base = _hold_fixed(fn.base_dist)
        return None if base is None else base.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, Normal):
        return dist.Normal(fn.loc.detach(), fn.scale.detach())
    if isinstance(fn, MultivariateNormal):
        return dist.MultivariateNormal(fn.loc.detach(), scale_tril=fn.scale_tril.detach())
    if isinstance(fn, LowRankMultivariateNormal):
        parts = (fn.loc, fn.cov_factor, fn.cov_diag)
        return dist.LowRankMultivariateNormal(*(part.detach() for part in parts))
    return None
