"""Traces of a model: its latent sites, its plates, its enumeration, its predictions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_flatten

Model = Callable[..., Any]


def prior_trace(model: Model, args: Any, kwargs: Any) -> Any:
    """A trace of the model with every latent site drawn from its prior."""
    return poutine.trace(model).get_trace(*args, **kwargs)


def latent_sites(trace: Any) -> Iterator[tuple[str, Any]]:
    """The latent sites of a trace, without plates."""
    for name, site in trace.iter_stochastic_nodes():
        if not site_is_subsample(site):
            yield name, site


def comparable(model: Model, trace: Any) -> Model:
    """The model, or if it observes nothing, the model with its predictions observed.

    A network without its likelihood, such as the ``net`` of TyXe's ``VariationalBNN``, is meant to
    return the same under the group, whatever its output will be compared with. Latent values among
    what a model returns are no predictions.

    :param trace: a trace of the model.
    """
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    if any(site["is_observed"] and not site_is_subsample(site) for site in sites):
        return model
    latent = {id(site["value"]) for site in sites}
    returned = _tensors(trace.nodes["_RETURN"]["value"])
    predictions = [k for k, value in enumerate(returned) if id(value) not in latent]
    return functools.partial(_observe_predictions, model, predictions)


def _observe_predictions(model: Model, positions: Sequence[int], *args: Any, **kwargs: Any) -> None:
    returned = _tensors(model(*args, **kwargs))
    for position in positions:
        mean = returned[position]
        anything = torch.arange(mean.numel()).cos().view(mean.shape)
        likelihood = dist.Normal(1.0 * mean, 1.0).to_event(mean.dim())
        pyro.sample(f"returned value {position}", likelihood, obs=anything)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def is_enumerated(site: Any) -> bool:
    """Whether the model asks for a site to be summed out."""
    return bool(site["infer"].get("enumerate")) and site["fn"].has_enumerate_support


def plate_nesting(trace: Any) -> int:
    """The largest number of plate dimensions of any site."""
    return max(
        (
            -frame.dim
            for _, site in trace.nodes.items()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
            if frame.vectorized and frame.dim is not None
        ),
        default=0,
    )


def enumerated(model: Model, max_plate_nesting: int) -> Model:
    """The model with enumerated sites on dimensions to the left of all plates."""
    wrapped: Model = poutine.enum(model, first_available_dim=-1 - max_plate_nesting)
    return wrapped
