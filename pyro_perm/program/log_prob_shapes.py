"""Pyro's check that the log-density of a site has the dimensions of its plates, and no others."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape

# All dimensions are to be those of plates: none is of particles, or of what is summed out.
_ANY_NESTING: Any = float("inf")


class LogProbShapes(Messenger):
    """Refuses a run whose sites are batched along other dimensions than their plates'.

    Observations of shape ``(n, 1)`` of a distribution of shape ``(n,)`` have ``n * n``
    log-densities, whose sum is a number like any other. Pyro's losses look at them at each step;
    where none of these runs the model, its first run is made inside of this handler. As in Pyro,
    nothing is looked at where validation is off when this is made.

    :raises ValueError: as of ``Trace_ELBO``; names the site, both shapes and the fixes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_on = is_validation_enabled()

    def _pyro_post_sample(self, msg: Any) -> None:
        if self._is_on and not site_is_subsample(msg) and self.concerns(msg):
            _require_shape(msg)

    def concerns(self, msg: Any) -> bool:
        """Whether a site is one to look at: all are."""
        return True


class LogProbShapesInPlates(LogProbShapes):
    """The same of sites in plates. MCMC adds up the log-densities of all others, batched or not."""

    def concerns(self, msg: Any) -> bool:
        """Whether a site lies in a plate."""
        return any(frame.vectorized for frame in msg["cond_indep_stack"])


def _require_shape(msg: Any) -> None:
    with torch.no_grad():
        try:
            log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        except NotImplementedError:  # What has no density is never added up.
            return
        log_prob = scale_and_mask(log_prob, msg["scale"], msg["mask"])
    site: Any = {**msg, "log_prob": log_prob}
    check_site_shape(site, _ANY_NESTING)
