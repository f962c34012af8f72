"""Predictions of a Bayesian model at inputs of any number, in batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.posterior.latents import (
    log_prob_shapes,
    require_draws,
    require_made_of_observations,
    together,
)
from pyro_perm.posterior.likelihood import pointwise
from pyro_perm.program.call import Call, model_of, refuse_shared_keywords
from pyro_perm.program.full_data import FullData, survey
from pyro_perm.program.isolation import without_autoguide_handlers
from pyro_perm.program.restoration import restored
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.program.sites import SiteKind
from pyro_perm.program.vectorized import Datasets, DrawMapper, Values
from pyro_perm.rescaled_draws import unrescaled
from pyro_perm.sampling import looking_on, set_up

_NUM_SAMPLES = 1000


@dataclass(frozen=True)
class Prediction:
    """The posterior predictive distribution of an observed site, by draws.

    Attributes:
        draws: new observations, one for each draw of the weights, shape ``(draws, N, ...)``.
        means: mean of the observation given the weights, same shape: the network's function in a
            regression; probabilities of the classes, shape ``(draws, N, C)``, if categorical.
            Discrete latent sites that the posterior leaves out are drawn from their prior for it.
        log_likelihood: log-density of the observations given the weights, in nats and without the
            scale of subsampling, those discrete sites summed out, and factors in the same plate
            added, shape ``(draws, N)``; None if the model was called without observations, or
            they have none each, as where they lie in no plate.
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

        :raises ValueError: if the observations have no log-likelihood.
        """
        if self.log_likelihood is None:
            raise ValueError(
                "the model was called without observations: pass them to predict; if it had them, "
                "predict has warned why none has a log-likelihood of its own"
            )
        return self.log_likelihood.logsumexp(0) - math.log(len(self.log_likelihood))

    def quantiles(self, probabilities: Sequence[float] | Tensor) -> Tensor:
        """Quantiles of the predictive distribution, shape ``(len(probabilities), N, ...)``."""
        # torch.quantile refuses more than 2^24 entries.
        quantiles = np.quantile(self.draws.cpu().numpy(), np.asarray(probabilities), axis=0)
        return torch.from_numpy(quantiles).to(self.draws)


@refuse_shared_keywords
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

    Every draw of the weights serves all batches. Plates that subsample run over all of their data,
    if the model looks its data up by their indices; one that never looks at them, as
    ``plate("data", size, subsample_size=len(x))``, was passed a batch, which is predicted as it is.
    Everything is left as it was, random states too: the same state gives the same draws.

    :param model: the model. Where :func:`torch.func.vmap` can, it is vectorized over draws; it runs
        draw by draw elsewhere.
    :param posterior: a guide such as ``AutoNormal`` or :class:`AutoSymmetrized`, or Pyro's ``MCMC``
        after its run, or its samples, site -> shape ``(draws, *site shape)``. A guide that rescales
        units leaves them as they are for its own model, whose predictions are the same.
    :param args: arguments of the model and the guide, with or without observations.
    :param num_samples: number of draws of a guide, 1000 by default. Samples are all used.
    :param batch_size: number of rows at a time: every tensor among ``args`` is split along its
        first dimension, and the site's draws are joined along theirs; by default all rows at once.
    :param site: the observed site, where the model has several.
    :param draws_at_once: how many draws to vectorize over at once; 1 needs the least memory.
    :param progress: whether to show a progress bar.
    :param kwargs: further arguments, passed on whole. What a model has in common with the keywords
        above is bound to it beforehand: ``functools.partial(model, site=...)``.
    :raises ValueError: if ``num_samples`` is given with samples or below one, if the tensors among
        ``args`` differ in length, if ``site`` is needed or unknown, if its distribution has no mean
        in closed form, or none at all, as ``StudentT(1.0)``; if the posterior lacks a latent site
        of the model or draws an observed one; if a guide has not run and nothing is observed; or as
        ``Trace_ELBO``, if a site is batched along other dimensions than its plates'.
    """
    call = Call(model, args, kwargs)
    batches = [replace(call, args=tuple(batch)) for batch in _batches(args, batch_size)]
    samples = _samples_of(posterior) if isinstance(posterior, MCMC) else posterior
    draws = _draws(samples, num_samples)
    with restored(model, posterior, args, kwargs) as writes:
        with writes:
            with fixed_seed(), log_prob_shapes(posterior):  # What the model is made of only.
                first = survey(batches[0])
            latent = _latent_values(samples, first, call)
            with looking_on():
                target = _target(first, latent({n: each[0] for n, each in draws.items()}), site)

        def predict_draw(draw: Values) -> Datasets:
            values = latent(draw)
            parts = [
                _predict_batch(replace(first, call=batch), values, target) for batch in batches
            ]
            return {"prediction": _join(parts, batches)}

        map_draws = DrawMapper(draws_at_once, progress)
        found = map_draws(predict_draw, draws, description="predictive draws")["prediction"]
    prediction = Prediction(found["draws"], found["means"], found.get("log_likelihood"))
    _require_means(prediction, target.site)
    return prediction


@torch.no_grad()
def observed_values(
    model: Callable[..., Any], *args: Any, site: str | None = None, **kwargs: Any
) -> Tensor:
    """The observations at the site that :func:`predict` predicts.

    :param model: the model; ``args`` and ``kwargs`` are its arguments, with observations.
    :param site: the observed site, where the model has several.
    :raises ValueError: if ``site`` is needed or unknown, or nothing is observed.
    """
    with restored(model, args, kwargs) as writes, writes, fixed_seed():
        seen = survey(Call(model, args, kwargs))
    observed = seen.names(SiteKind.OBSERVATION)
    if not observed:
        raise ValueError(
            "the model observes nothing with these arguments: pass the observations too, such as "
            "held_out=(x, y)"
        )
    candidates = observed if site is None else [site]
    if len(candidates) != 1 or candidates[0] not in observed:
        raise ValueError(f"choose the observed site: site= one of {sorted(observed)}")
    return seen.sites[candidates[0]].value


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


def _samples_of(mcmc: MCMC) -> dict[str, Tensor]:
    require_draws(mcmc)
    samples: dict[str, Tensor] = mcmc.get_samples()
    return samples


def _draws(samples: Any, num_samples: int | None) -> dict[str, Tensor]:
    """The samples, or the numbers of the draws of a guide."""
    if isinstance(samples, Mapping):
        if num_samples is not None:
            raise ValueError("samples are all used: leave out num_samples=, or pass some of them")
        return dict(samples)
    num = _NUM_SAMPLES if num_samples is None else num_samples
    if num < 1:
        raise ValueError(f"num_samples must be at least 1, but is {num}")
    return {"index": torch.arange(num, device="cpu")}


def _latent_values(
    posterior: Callable[..., Any] | Values, model: FullData, call: Call
) -> Callable[[Values], Values]:
    """From an entry of :func:`_draws` to values of the latent sites.

    :param call: the model with all of its arguments, which are the guide's.
    """
    if isinstance(posterior, Mapping):
        return lambda sample: sample
    guide_call = replace(call, program=posterior)
    require_made_of_observations(posterior, model)
    set_up(guide_call)
    with looking_on():
        guide = together(model, survey(guide_call))

    rescaling = unrescaled if _is_model_of(posterior, call.program) else nullcontext

    def draw(_: Values) -> Values:
        with poutine.mask(mask=False), rescaling():  # Nobody asks for the density.
            drawn = guide.draw().values
        return {name: drawn[name] for name in guide.names(SiteKind.LATENT)}

    return draw


def _is_model_of(guide: Callable[..., Any], model: Callable[..., Any]) -> bool:
    """Whether a guide's symmetry was verified on this model, so that it changes no prediction.

    Then units need not be rescaled, which goes by the numbers of each draw and forbids vmap.
    """
    own = model_of(guide) if isinstance(guide, AutoGuide) else None
    return own is not None and without_autoguide_handlers(own) == model


@dataclass(frozen=True)
class _Target:
    """What is predicted.

    Attributes:
        site: name of the observed site.
        summed_out: latent sites that are summed out of the log-likelihood.
        has_log_likelihood: whether there are observations, each with a log-likelihood.
    """

    site: str
    summed_out: tuple[str, ...]
    has_log_likelihood: bool


def _target(model: FullData, values: Values, site: str | None) -> _Target:
    """What to predict, and whether its log-likelihood can be told.

    Warns of what is missing in the log-likelihood.
    """
    _require_shapes(values, model)
    name = _observed_site(values, model, site)
    summed_out = tuple(set(model.names(SiteKind.LATENT)) - values.keys() - {name})
    if model.sites[name].kind is not SiteKind.OBSERVATION:
        return _Target(name, summed_out, has_log_likelihood=False)
    found = pointwise(model, model.evaluate(values, summed_out).terms)
    for missing, why in found.unplaced.items():
        warnings.warn(
            f"'{missing}' is part of the likelihood, or of the prior, but of no observation's "
            f"log-likelihood: {why}",
            stacklevel=5,
        )
    if name not in found.terms:
        return _Target(name, summed_out, has_log_likelihood=False)
    is_joint = not found.terms[name][0].log_prob.dim() and model.sites[name].event_dim > 0
    if is_joint:
        warnings.warn(
            f"the observations at site '{name}' have one log-likelihood together, and none each: "
            "put them into a plate, with pyro.plate('data', N): pyro.sample(...), in place of "
            "to_event",
            stacklevel=5,
        )
    return _Target(name, summed_out, has_log_likelihood=not is_joint)


def _require_shapes(values: Values, model: FullData) -> None:
    for name in values.keys() & model.sites.keys():
        shape = model.sites[name].value.shape
        if values[name].shape != shape:
            raise ValueError(
                f"site '{name}' has shape {tuple(shape)} in the model, but a draw of it has shape "
                f"{tuple(values[name].shape)}: samples are of shape (draws, *site shape), and "
                "latent values of each observation do not go with batch_size=, or with a plate "
                "that only scales a batch, pyro.plate(name, size, subsample_size=len(x))"
            )


def _observed_site(values: Values, model: FullData, site: str | None) -> str:
    undrawn = set(model.names(SiteKind.LATENT)) - values.keys()
    observed = set(model.names(SiteKind.OBSERVATION))
    needed = {name for name in undrawn if not model.sites[name].can_be_summed_out}
    drawn = sorted(set(model.names(SiteKind.OBSERVATION)) & values.keys())
    if drawn or not observed | undrawn:
        raise ValueError(
            f"the posterior draws {drawn or sorted(values)}, which leaves no observation to "
            "predict: a guide whose first call was without observations takes them for latent "
            "sites; make it anew, and call guide(x, y) with observations first"
        )
    candidates = {site} if site is not None else observed or needed or undrawn
    if not observed and len(candidates) > 1:
        raise ValueError(
            f"the samples or the guide have no draws of {sorted(candidates)}: say by site= which "
            "of them is the observed site, and add draws of those that are latent"
        )
    if len(candidates) != 1 or not candidates <= observed | undrawn:
        raise ValueError(f"choose the observed site: site= one of {sorted(observed | undrawn)}")
    missing = sorted(needed - candidates)
    if missing:
        raise ValueError(
            f"the posterior has no draws of {missing}: add them to the guide or the samples; if "
            "they are not latent, call predict with their observations"
        )
    return candidates.pop()


def _predict_batch(model: FullData, values: Values, target: _Target) -> dict[str, Tensor]:
    """A new observation, its mean, and the log-likelihood of the observations if there are any."""
    new = model.without_observations.draw(values)
    if target.site not in new.means:
        raise ValueError(_no_mean(target.site))
    predicted = {"draws": new.values[target.site], "means": new.means[target.site]}
    if target.has_log_likelihood:
        given = model.evaluate(values, target.summed_out)
        predicted["log_likelihood"] = pointwise(model, given.terms).log_probs()[target.site]
    return predicted


def _require_means(prediction: Prediction, site: str) -> None:
    """Refuse distributions that have draws but no mean, which PyTorch gives as NaN."""
    means, draws = prediction.means, prediction.draws
    if means.shape == draws.shape and (means.isnan() & ~draws.isnan()).any():
        raise ValueError(_no_mean(site))


def _no_mean(site: str) -> str:
    return f"the distribution at site '{site}' has no mean in closed form: use to_arviz for draws"


def _join(parts: Sequence[dict[str, Tensor]], batches: Sequence[Call]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    for part, batch in zip(parts, batches, strict=True):
        num = next(len(value) for value in batch.args if isinstance(value, Tensor))
        if part["draws"].shape[:1] != (num,):
            raise ValueError(
                f"the observed site has shape {tuple(part['draws'].shape)} in a batch of {num} "
                "rows, which do not lie along its first dimension: leave out batch_size="
            )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
