"""Predictions of a Bayesian model at inputs of any number, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import MCMC
from torch import Tensor

from pyro_perm.program.full_data import Site, run
from pyro_perm.program.vectorized import DrawMapper, Groups, Values

_NUM_SAMPLES = 1000


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive distribution of an observed site, by draws.

    Attributes:
        draws: new observations, one for each draw of the weights, shape ``(draws, N, ...)``.
        means: mean of the observation given the weights, same shape: the network's function in a
            regression; probabilities of the classes, shape ``(draws, N, C)``, if categorical.
        log_likelihood: log-density of the observations given the weights, in nats and without the
            scale of subsampling, shape ``(draws, N)``; None if the model was called without.
    """

    draws: Tensor
    means: Tensor
    log_likelihood: Tensor | None

    @property
    def mean(self) -> Tensor:
        """Predictive mean, or predictive probabilities of the classes, shape ``(N, ...)``."""
        return self.means.mean(0)

    @property
    def log_predictive_density(self) -> Tensor:
        """``log 1/S sum_s p(y | w_s)`` of each observation, in nats, shape ``(N,)``.

        Minus its mean is the NLL.

        :raises ValueError: if the model was called without observations.
        """
        if self.log_likelihood is None:
            raise ValueError("the model was called without observations: pass them to predict")
        return self.log_likelihood.logsumexp(0) - math.log(len(self.log_likelihood))

    def quantiles(self, probabilities: Sequence[float] | Tensor) -> Tensor:
        """Quantiles of the predictive distribution, shape ``(len(probabilities), N, ...)``."""
        # torch.quantile refuses more than 2^24 entries.
        quantiles = np.quantile(self.draws.cpu().numpy(), np.asarray(probabilities), axis=0)
        return torch.from_numpy(quantiles).to(self.draws)


@torch.no_grad()
def predict(
    model: Callable[..., Any],
    posterior: Callable[..., Any] | MCMC | Values,
    *args: Any,
    num_samples: int | None = None,
    batch_size: int | None = None,
    site: str | None = None,
    draws_at_once: int = 64,
    progress: bool = True,
    **kwargs: Any,
) -> Prediction:
    """Draw from the posterior predictive distribution of an observed site.

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model(x, y=None):
    ...     slope = pyro.sample("slope", pyro.distributions.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("y", pyro.distributions.Normal(slope * x, 1.0), obs=y)
    >>> x, y = torch.linspace(-1, 1, 5), torch.zeros(5)
    >>> prediction = pp.predict(model, AutoNormal(model), x, y, batch_size=2, progress=False)
    >>> prediction.mean.shape, prediction.quantiles([0.05, 0.95]).shape
    (torch.Size([5]), torch.Size([2, 5]))
    >>> prediction.log_predictive_density.shape, pp.metrics.rmse(prediction.mean, y) < 0.2
    (torch.Size([5]), True)

    Every draw of the weights serves all batches. Plates that subsample run over all of their data.

    :param model: the model. Where :func:`torch.func.vmap` can, it is vectorized over draws; it runs
        draw by draw elsewhere.
    :param posterior: a guide such as ``AutoNormal`` or :class:`AutoSymmetrized`, or Pyro's ``MCMC``
        after its run, or its samples, site -> shape ``(draws, *site shape)``.
    :param args: arguments of the model and the guide, with or without observations.
    :param num_samples: number of draws of a guide, 1000 by default. Samples are all used.
    :param batch_size: number of rows at a time: every tensor among ``args`` is split along its
        first dimension, and the site's draws are joined along theirs; by default all rows at once.
    :param site: the observed site, where the model has several.
    :param draws_at_once: how many draws to vectorize over at once; 1 needs the least memory.
    :param progress: whether to show a progress bar.
    :param kwargs: further arguments, passed on whole.
    :raises ValueError: if ``num_samples`` is given with samples or below one, if the tensors among
        ``args`` differ in length, if ``site`` is needed or unknown, if its distribution has no mean
        in closed form, or if the posterior lacks a latent site of the model.
    """
    batches = _batches(args, batch_size)
    samples = posterior.get_samples() if isinstance(posterior, MCMC) else posterior
    with poutine.seed(rng_seed=0):  # The shapes of the sites only.
        sites = run(model, batches[0], kwargs)

    def predicted(draw: Values) -> Groups:
        values = draw if isinstance(samples, Mapping) else _drawn(samples, args, kwargs)
        _require_shapes(values, sites)
        name = _observed_site(values, sites, site)
        parts = [_predicted(model, batch, kwargs, values, name) for batch in batches]
        return {"prediction": _joined(parts, batches)}

    draws = _draws(samples, num_samples)
    mapped = DrawMapper(draws_at_once, progress)(predicted, draws, description="predictive draws")
    found = mapped["prediction"]
    return Prediction(found["draws"], found["means"], found.get("log_likelihood"))


def _batches(args: Sequence[Any], batch_size: int | None) -> list[list[Any]]:
    """The arguments, their tensors split into rows."""
    if batch_size is None:
        return [list(args)]
    lengths = {len(value) for value in args if isinstance(value, Tensor)}
    if len(lengths) != 1 or batch_size < 1:
        raise ValueError(
            f"batch_size = {batch_size} must be at least 1, and the tensors to split of one length,"
            f" but the lengths are {sorted(lengths)}: pass what is not split by keyword"
        )
    return [
        [
            value[start : start + batch_size] if isinstance(value, Tensor) else value
            for value in args
        ]
        for start in range(0, lengths.pop(), batch_size)
    ]


def _draws(samples: Any, num_samples: int | None) -> dict[str, Tensor]:
    """The samples, or the numbers of the draws of a guide."""
    if isinstance(samples, Mapping):
        if num_samples is not None:
            raise ValueError("samples are all used: leave out num_samples=, or pass some of them")
        return dict(samples)
    num = _NUM_SAMPLES if num_samples is None else num_samples
    if num < 1:
        raise ValueError(f"num_samples must be at least 1, but is {num}")
    return {"index": torch.arange(num)}


def _drawn(guide: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Tensor]:
    with poutine.mask(mask=False):  # Nobody asks for the density.
        sites = run(guide, args, kwargs)
    return {name: site.value for name, site in sites.items() if site.is_latent}


def _require_shapes(values: Values, sites: Mapping[str, Site]) -> None:
    for name in values.keys() & sites.keys():
        shape = sites[name].value.shape
        if values[name].shape != shape:
            raise ValueError(
                f"site '{name}' has shape {tuple(shape)} in the model, but a draw of it has shape "
                f"{tuple(values[name].shape)}: samples are of shape (draws, *site shape), and "
                "latent values of each observation do not go with batch_size="
            )


def _observed_site(values: Values, sites: Mapping[str, Site], site: str | None) -> str:
    undrawn = {name for name, s in sites.items() if s.is_latent} - values.keys()
    observed = {name for name, s in sites.items() if s.is_observation}
    candidates = {site} if site is not None else observed or undrawn
    if len(candidates) != 1 or not candidates <= observed | undrawn:
        raise ValueError(f"choose the observed site: site= one of {sorted(observed | undrawn)}")
    missing = sorted(undrawn - candidates)
    if missing:
        raise ValueError(
            f"the posterior has no draws of {missing}: add them to the guide or the samples; if "
            "they are not latent, call predict with their observations"
        )
    return candidates.pop()


def _predicted(
    model: Callable[..., Any], args: Any, kwargs: Any, values: Values, name: str
) -> dict[str, Tensor]:
    """A new observation, its mean, and the log-likelihood of the observations if there are any."""
    new = run(poutine.uncondition(model), args, kwargs, values)[name]
    if new.mean is None:
        raise ValueError(
            f"the distribution at site '{name}' has no mean in closed form: use to_arviz for draws"
        )
    predicted = {"draws": new.value, "means": new.mean}
    given = run(model, args, kwargs, {**values, name: new.value})[name]
    if given.is_observation:
        predicted["log_likelihood"] = given.log_prob
    return predicted


def _joined(
    parts: Sequence[dict[str, Tensor]], batches: Sequence[Sequence[Any]]
) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    for part, batch in zip(parts, batches, strict=True):
        num = next(len(value) for value in batch if isinstance(value, Tensor))
        if part["draws"].shape[:1] != (num,):
            raise ValueError(
                f"the observed site has shape {tuple(part['draws'].shape)} in a batch of {num} "
                "rows, which do not lie along its first dimension: leave out batch_size="
            )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
