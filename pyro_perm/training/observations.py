"""Whether a model observes anything that its guide could be trained on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_perm.log_ratio import LogRatio
from pyro_perm.program._pyro_internals import is_deterministic


@contextmanager
def watch_for_observations() -> Iterator[None]:
    """Warn if a model that is run in this context, beside its guide, observes nothing.

    Where observations are an argument that may be left out, whoever forgets them gets a guide that
    draws them, too, and is trained to the prior. A factor counts as an observation.
    """
    with _Sites() as sites:
        yield
    if sites.latent and not sites.observed:
        warnings.warn(
            f"the model observes nothing: its sites {sorted(sites.latent)} are all latent, and the "
            "guide is trained to the prior. If observations were left out, pass them with the "
            "inputs, fit(model, guide, (x, y)), and make the guide anew",
            stacklevel=4,
        )


class _Sites(Messenger):
    """Names of the sites that are drawn, and of the observed ones, without what guides add."""

    def __init__(self) -> None:
        super().__init__()
        self.latent: set[str] = set()
        self.observed: set[str] = set()

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            if not (site_is_subsample(msg) or msg["infer"].get("is_auxiliary")):
                self.latent.add(msg["name"])
        elif not (is_deterministic(msg) or isinstance(msg["fn"], LogRatio)):
            self.observed.add(msg["name"])
