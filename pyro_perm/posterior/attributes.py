"""What an exported posterior says of itself: versions, seed, guide, estimator, certified bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pyro
import torch
from pyro.infer import MCMC

from pyro_perm._version import __version__
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.posterior.evaluation import SymmetrizedELBO

Attributes = dict[str, Any]


def versions() -> Attributes:
    """The packages that took part."""
    return {
        "inference_library": "pyro_perm",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "arviz_version": version("arviz"),
    }


def source(guide: Callable[..., Any] | MCMC) -> Attributes:
    """Where the draws come from."""
    if isinstance(guide, MCMC):
        return {"sampler": type(guide.kernel).__name__}
    estimator = "none: the guide is not symmetrized"
    if isinstance(guide, AutoSymmetrized):
        estimator = repr(guide.estimator)
    return {"guide": type(guide).__name__, "estimator": estimator}


def certificate(elbo: SymmetrizedELBO) -> Attributes:
    """The fields of a certified interval, such as ``elbo_lower`` and ``mutual_information_lower``.

    :raises TypeError: if it is something else.
    """
    if not isinstance(elbo, SymmetrizedELBO):
        raise TypeError(f"elbo must be what symmetrized_elbo returns, but is {elbo!r}")
    fields = asdict(elbo)
    log_order, information = fields.pop("log_order"), fields.pop("mutual_information")
    del information["log_order"]
    bounds = {f"elbo_{name}": value for name, value in fields.items()}
    bounds |= {f"mutual_information_{name}": value for name, value in information.items()}
    return bounds | {"log_order": log_order}
