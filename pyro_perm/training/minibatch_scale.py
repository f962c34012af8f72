"""Whether a model counts a minibatch for all data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_perm.networks.bayesian import BayesianNetwork
from pyro_perm.program.batches import Arguments
from pyro_perm.program.call import Call
from pyro_perm.program.isolation import isolation
from pyro_perm.program.sites import sample_nodes
from pyro_perm.program.trace import prior_trace


def warn_if_unscaled(model: Callable[..., Any], call: Arguments, num_data: int | None) -> None:
    """Warn if a model weighs a part of the data as if it were all: its prior then counts too much.

    :param call: a batch.
    :param num_data: number of observations in an epoch, where it is known.
    """
    args, kwargs = call
    sizes = [len(value) for value in (*args, *kwargs.values()) if _has_length(value)]
    if num_data is None or not sizes or sizes[0] >= num_data:
        return
    with isolation(model) as writes, writes:
        trace = prior_trace(Call(model, args, kwargs))
    observed = [node for _, node in sample_nodes(trace) if node["is_observed"]]
    if observed and all(_is_one(node["scale"]) for node in observed):
        warnings.warn(
            f"the model gives the {sizes[0]} observations of a batch the weight 1, where an epoch "
            f"has {num_data}: the ELBO is that of a batch, and its prior counts too much. "
            + _remedy(model, num_data),
            stacklevel=3,
        )


def _remedy(model: Callable[..., Any], num_data: int) -> str:
    if isinstance(model, BayesianNetwork):
        return f"Tell it how many there are: pp.bayesian(..., dataset_size={num_data})"
    return f'Observe in pyro.plate("data", {num_data}, subsample=x), or under poutine.scale'


def _has_length(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _is_one(scale: float | Tensor) -> bool:
    return not isinstance(scale, Tensor) and scale == 1.0
