"""Estimates of ``log q^G(w) - log q(w)`` that are numbers."""

from __future__ import annotations

import math

from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.estimators import Estimator
from pyro_perm.permanent._tracing import is_tracing


def finite_estimate(density: Density, estimator: Estimator) -> Tensor:
    """``log q^G(w) - log q(w)`` of every draw, shape ``(*batch)``, in nats.

    :raises FloatingPointError: if it is not finite, unless Pyro's validation is off.
    """
    log_ratio = estimator.log_ratio(density)
    # This waits for the device, as Pyro's validation of distributions does: one switch for both.
    validate = is_validation_enabled() and not is_tracing()
    if validate and not math.isfinite(log_ratio.sum().item()):
        raise FloatingPointError(
            f"{estimator} found log q^G(w) - log q(w) = {log_ratio.tolist()}: the base guide's "
            "parameters have diverged, or its scales underflowed; try a lower learning rate"
        )
    return log_ratio
