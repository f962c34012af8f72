"""One run of a model at given latent values, under the lightest handler that sees its densities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_perm.functional.latent_weight import latent_weight

_TRACED_LOSS = "train it with TraceSymmetrized_ELBO or Trace_ELBO"


class NeedsTraces(TypeError):
    """A loss without traces does not serve a model or a guide.

    :param reason: why not; the fix is added.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: {_TRACED_LOSS}")


class Substitution(Messenger):
    """Gives latent sites their values, and keeps what the log joint is made of.

    :param values: site -> its value.

    Attributes:
        priors: latent site -> its distribution, given the values of others.
        log_likelihoods: of each observed site, scaled and masked, in nats.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.priors: dict[str, Distribution] = {}
        self.log_likelihoods: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is not None:
            msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.values:
            _require_plain(msg)
            self.priors[name] = msg["fn"]
        elif msg["is_observed"]:
            log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
            self.log_likelihoods.append(scale_and_mask(log_prob, msg["scale"], msg["mask"]).sum())
        elif not site_is_subsample(msg):
            raise NeedsTraces(f"the model samples site '{name}', which the guide does not draw")

    def require_all_met(self) -> None:
        """Refuse a run that came by fewer sites than the guide draws.

        :raises NeedsTraces: naming a site.
        """
        for name in self.values:
            if name not in self.priors:
                raise NeedsTraces(
                    f"the guide draws site '{name}', which this run of the model does not sample"
                )


def _require_plain(msg: Any) -> None:
    """Refuse a latent site of which handlers make something else.

    :raises ValueError: if it is observed; names the site.
    :raises NeedsTraces: if its prior is weighed.
    """
    name, scale, mask = msg["name"], msg["scale"], msg["mask"]
    if msg["is_observed"]:
        raise ValueError(
            f"site '{name}' is observed, but the guide draws it: make the guide of the conditioned "
            "model"
        )
    if isinstance(scale, Tensor) or scale != latent_weight() or not (mask is None or mask is True):
        raise NeedsTraces(
            f"a handler scales or masks the prior of site '{name}', but not its guide alike"
        )
