"""A weight on what latent sites add to an ELBO: on the divergence and its correction alike."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

_weight: ContextVar[float] = ContextVar("latent_weight", default=1.0)


def latent_weight() -> float:
    """The product of all weights that are set around the caller."""
    return _weight.get()


class LatentWeight(Messenger):
    """Weighs all that a guide and a model sample, and nothing that the model observes.

    Around both, it makes an ELBO ``E[log p(D | w)] - weight * (KL(q || p) - I)``: the log-ratio
    by which a guide is symmetrized is at a latent site too.

    :param weight: not negative.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def __enter__(self) -> LatentWeight:
        self._before = _weight.set(_weight.get() * self.weight)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _weight.reset(self._before)
        super().__exit__(*error)

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight
