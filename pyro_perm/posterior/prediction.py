"""Predictions of a Bayesian model at inputs of any number, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import MCMC
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor
from tqdm.auto import tqdm

from pyro_perm.posterior.arviz import _full_data as full_data

Values = Mapping[str, Tensor]
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
    progress: bool = True,
    **kwargs: Any,
) -> Prediction:
    """Draw from the posterior predictive distribution of an observed site.

    Usage::

        prediction = predict(model, guide, x_test, y_test, batch_size=1000)
        prediction.mean, prediction.quantiles([0.05, 0.95])
        prediction.log_predictive_density.mean(), metrics.rmse(prediction.mean, y_test)

    Every draw of the weights serves all batches. Plates that subsample run over all of their data.

    :param model: the model; it runs one draw at a time, so need not be vectorizable.
    :param posterior: a guide such as ``AutoNormal`` or :class:`AutoSymmetrized`, or Pyro's ``MCMC``
        after its run, or its samples, site -> shape ``(draws, *site shape)``.
    :param args: arguments of the model and the guide, with or without observations.
    :param num_samples: number of draws of a guide, 1000 by default. Samples are all used.
    :param batch_size: number of rows at a time: every tensor among ``args`` is split along its
        first dimension, and the site's draws are joined along theirs; by default all rows at once.
    :param site: the observed site, where the model has several.
    :param progress: whether to show a progress bar.
    :param kwargs: further arguments, passed on whole.
    :raises ValueError: if ``num_samples`` is given with samples or below one, if the tensors among
        ``args`` differ in length, if ``site`` is needed or unknown, or if the posterior lacks a
        latent site of the model.
    """
    batches = _batches(args, batch_size)
    rows = []
    with full_data():
        draws, num = _draws(posterior, num_samples, args, kwargs)
        for values in tqdm(draws, total=num, desc="predictive draws", disable=not progress):
            joint = poutine.condition(poutine.uncondition(model), data=values)
            traces = [poutine.trace(joint).get_trace(*batch, **kwargs) for batch in batches]
            parts = [_predicted(trace, values, site) for trace in traces]
            _require_rows([part[0] for part in parts], batches)
            rows.append(_combined(_joined, parts))
    return Prediction(*_combined(torch.stack, rows))


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


def _draws(
    posterior: Any, num_samples: int | None, args: Any, kwargs: Any
) -> tuple[Iterator[dict[str, Tensor]], int]:
    """Values of the latent sites, draw by draw, and their number."""
    samples = posterior.get_samples() if isinstance(posterior, MCMC) else posterior
    if not isinstance(samples, Mapping):
        num = _NUM_SAMPLES if num_samples is None else num_samples
        if num < 1:
            raise ValueError(f"num_samples must be at least 1, but is {num}")
        return (_latent(posterior, args, kwargs) for _ in range(num)), num
    if num_samples is not None:
        raise ValueError("samples are all used: leave out num_samples=, or pass some of them")
    num = len(next(iter(samples.values())))
    return ({name: value[k] for name, value in samples.items()} for k in range(num)), num


def _latent(guide: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Tensor]:
    trace: Any = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
    return {
        name: node["value"]
        for name, node in trace.iter_stochastic_nodes()
        if not node["infer"].get("is_auxiliary")
    }


def _predicted(trace: Any, values: Values, site: str | None) -> tuple[Tensor, Tensor, Any]:
    """A new observation, its mean, and the log-likelihood of the observations if there are any."""
    _require_shapes(trace, values)
    node = trace.nodes[_observed_site(trace, site)]
    fn, observations = node["fn"], node["infer"].get("obs")
    log_likelihood = None
    if observations is not None:
        log_likelihood = scale_and_mask(fn.log_prob(observations), mask=node["mask"])
    return node["value"], _mean(fn), log_likelihood


def _require_shapes(trace: Any, values: Values) -> None:
    for name in values.keys() & trace.nodes.keys():
        shape = trace.nodes[name]["fn"].shape()
        if values[name].shape != shape:
            raise ValueError(
                f"site '{name}' has shape {tuple(shape)} in the model, but a draw of it has shape "
                f"{tuple(values[name].shape)}: samples are of shape (draws, *site shape)"
            )


def _observed_site(trace: Any, site: str | None) -> str:
    trace = prune_subsample_sites(trace)
    was_observed = {
        name: bool(node["infer"].get("was_observed"))
        for name, node in trace.iter_stochastic_nodes()
        if not site_is_factor(node)
        and not node["infer"].get("_deterministic")
        and not node["infer"].get("is_auxiliary")
    }
    candidates = [site] if site is not None else [n for n in was_observed if was_observed[n]]
    chosen = (candidates or list(was_observed))[:1]
    if len(candidates) > 1 or not chosen or chosen[0] not in was_observed:
        raise ValueError(f"choose the observed site: site= one of {list(was_observed)}")
    missing = [name for name in was_observed if name not in chosen and not was_observed[name]]
    if missing:
        raise ValueError(
            f"the posterior has no draws of {missing}: add them to the guide or the samples; if "
            "they are not latent, call predict with their observations"
        )
    return chosen[0]


def _mean(fn: Any) -> Tensor:
    categorical = isinstance(fn, torch.distributions.Categorical)
    mean: Tensor = fn.probs if categorical else fn.mean
    return mean


def _require_rows(draws: Sequence[Tensor], batches: Sequence[Sequence[Any]]) -> None:
    if len(batches) == 1:
        return
    for draw, batch in zip(draws, batches, strict=True):
        num = next(len(value) for value in batch if isinstance(value, Tensor))
        if draw.shape[:1] != (num,):
            raise ValueError(
                f"the observed site has shape {tuple(draw.shape)} in a batch of {num} rows, which "
                "do not lie along its first dimension: leave out batch_size="
            )


def _joined(batches: list[Tensor]) -> Tensor:
    return torch.cat(batches) if len(batches) > 1 else batches[0]


def _combined(how: Callable[[list[Tensor]], Tensor], rows: Sequence[Sequence[Any]]) -> Any:
    """Column by column; a column of None stays None."""
    columns = (list(column) for column in zip(*rows, strict=True))
    return tuple(None if column[0] is None else how(column) for column in columns)
