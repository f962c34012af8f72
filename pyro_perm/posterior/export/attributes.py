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
from pyro_perm.posterior.bounds.intervals import SymmetrizedELBO
from pyro_perm.symmetry import SymmetryGroup

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
    return {"guide": type(guide).__name__, "estimator": _estimator(guide)}


def statistics(guide: Callable[..., Any] | MCMC) -> Attributes:
    """How to read the statistics of the draws; the acceptance rate of each chain of MCMC."""
    if not isinstance(guide, MCMC):
        return {"log_q_estimator": _estimator(guide)}
    rates = guide.diagnostics().get("acceptance rate", {})
    return {"acceptance_rate": list(rates.values())} if rates else {}


def bounds(symmetry: SymmetryGroup | None, elbo: SymmetrizedELBO | None) -> Attributes:
    """``log_order``, and the interval, such as ``elbo_lower`` and ``mutual_information_lower``."""
    known: Attributes = {} if symmetry is None else {"log_order": symmetry.log_compact_order}
    if elbo is None:
        return known
    fields = asdict(elbo)
    known["log_order"] = fields.pop("log_order")
    information = fields.pop("mutual_information")
    del information["log_order"]
    known |= {f"elbo_{name}": value for name, value in fields.items()}
    return known | {f"mutual_information_{name}": value for name, value in information.items()}


def _estimator(guide: Callable[..., Any]) -> str:
    if isinstance(guide, AutoSymmetrized):
        return repr(guide.estimator)
    return "none: the guide is not symmetrized"
