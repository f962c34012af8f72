"""The loss for a guide, where the user gives none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer import ELBO, Trace_ELBO

from pyro_perm.elbo import TraceSymmetrized_ELBO
from pyro_perm.functional.elbo import FunctionalMeanField_ELBO, FunctionalSymmetrized_ELBO
from pyro_perm.functional.substitution import NeedsTraces
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.program.batches import Arguments

Program = Callable[..., Any]


def choose_elbo(model: Program, guide: Program, call: Arguments) -> ELBO:
    """The ELBO of a guide: without traces where that serves, by traces elsewhere.

    :param call: a first batch.
    """
    args, kwargs = call
    symmetrized = isinstance(guide, AutoSymmetrized)
    fast = FunctionalSymmetrized_ELBO() if symmetrized else FunctionalMeanField_ELBO()
    try:
        fast.loss(model, guide, *args, **kwargs)
    except NeedsTraces:
        return TraceSymmetrized_ELBO() if symmetrized else Trace_ELBO()
    return fast
