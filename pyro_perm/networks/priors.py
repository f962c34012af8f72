"""Priors of a network's parameters: functions of the name and the value of each.

What they return is of the parameter's shape, or of one of its entries, which are then independent.
None leaves the parameter as it is: a constant, or trained like any other parameter. They are
functions of the module with their first arguments bound, so that models can be pickled.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Transform

Distribution = dist.TorchDistribution
Prior = Callable[[str, Tensor], "Distribution | None"]
PriorLike = Prior | Distribution | Mapping[str, "Prior | Distribution | None"]


def standard_normal(name: str, parameter: Tensor) -> Distribution:
    """``N(0, 1)`` for every entry."""
    return dist.Normal(parameter.new_zeros(()), 1.0)


def fan_in(gain: float = 1.0) -> Prior:
    """``N(0, gain / fan_in)`` for the entries of weights, ``N(0, 1)`` for those of vectors.

    The fan-in of a weight is the product of its dimensions but the first, as in ``torch.nn``.
    Functions of wide networks then have a limit (Neal 1996; Matthews et al. 2018). Usage:

    >>> import torch
    >>> import pyro_perm as pp
    >>> pp.priors.fan_in()("fc.weight", torch.zeros(3, 4)).scale
    tensor(0.5000)

    :param gain: variance of a unit whose inputs are of variance one.
    """
    return partial(_fan_in, gain)


def _fan_in(gain: float, name: str, parameter: Tensor) -> Distribution:
    if parameter.dim() < 2:
        return standard_normal(name, parameter)
    variance = gain / math.prod(parameter.shape[1:])
    return dist.Normal(parameter.new_zeros(()), math.sqrt(variance))


def learned_scale(initial: float = 1.0) -> Prior:
    """``N(0, s^2)`` with one scale ``s`` a layer, which training fits (empirical Bayes).

    The scale is the parameter ``<layer>.prior_scale`` of the model.

    :param initial: value that it starts from.
    """
    return partial(_learned_scale, initial)


def _learned_scale(initial: float, name: str, parameter: Tensor) -> Distribution:
    layer = name.rpartition(".")[0]
    scale = pyro.param(
        f"{layer}.prior_scale" if layer else "prior_scale",
        lambda: parameter.new_tensor(initial),
        constraint=constraints.positive,
    )
    return dist.Normal(torch.zeros_like(scale), scale)


def weights_only(prior: PriorLike) -> Prior:
    """A prior for everything but norms and biases, which are the parameters of one dimension."""
    return partial(_of_weights, as_prior(prior))


def _of_weights(prior: Prior, name: str, parameter: Tensor) -> Distribution | None:
    return prior(name, parameter) if parameter.dim() > 1 else None


def as_prior(prior: PriorLike) -> Prior:
    """A function of name and value, from what :func:`pyro_perm.bayesian` takes.

    :raises TypeError: if it is something else.
    """
    if isinstance(prior, Mapping):
        each = {pattern: None if p is None else as_prior(p) for pattern, p in prior.items()}
        return partial(_by_name, each)
    if isinstance(prior, TorchDistributionMixin):
        return partial(_always, prior)
    if callable(prior):
        _require_name_and_value(prior)
        return prior
    raise TypeError(
        "a prior is a distribution, a function of a parameter's name and value, or a dictionary "
        f"from patterns of names to these or None, but is a {type(prior).__name__}"
    )


def _by_name(each: Mapping[str, Prior | None], name: str, parameter: Tensor) -> Distribution | None:
    matching = (p for pattern, p in each.items() if fnmatch.fnmatchcase(name, pattern))
    chosen = next(matching, None)
    return None if chosen is None else chosen(name, parameter)


def _always(prior: Distribution, name: str, parameter: Tensor) -> Distribution:
    return prior


def _require_name_and_value(prior: Prior) -> None:
    """Refuse a function that does not take these two, as one does that makes priors."""
    try:
        inspect.signature(prior).bind("name", "value")
    except TypeError:
        name = getattr(prior, "__name__", type(prior).__name__)
        raise TypeError(
            f"the prior '{name}' is a function, but not of a parameter's name and value: if it "
            f"makes priors, as fan_in does, call it: prior={name}(...)"
        ) from None
    except ValueError:  # It has no signature.
        return


def require_matches(prior: PriorLike, names: list[str]) -> None:
    """Refuse patterns that no parameter matches.

    :raises ValueError: naming the pattern.
    """
    for pattern in prior if isinstance(prior, Mapping) else ():
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"no parameter of the network matches the prior's pattern '{pattern}'; they are "
                f"{names}"
            )


def of_shape(prior: Distribution, name: str, parameter: Tensor) -> Distribution:
    """A prior for a whole parameter, of its event shape, precision and device.

    :raises ValueError: if it is of another shape.
    """
    prior, shape = _cast(prior, parameter), parameter.shape
    if prior.shape() == shape:
        whole: Distribution = prior.to_event(len(prior.batch_shape))
        return whole
    if prior.shape() == ():
        each: Distribution = prior.expand(shape).to_event(len(shape))
        return each
    raise ValueError(
        f"the prior of '{name}' is of shape {tuple(prior.shape())}, but the parameter of shape "
        f"{tuple(shape)}: return a distribution of that shape, or of a single entry"
    )


def _cast(value: Any, parameter: Tensor) -> Any:
    """A distribution whose tensors have the precision and the device of a parameter.

    Numbers become tensors of the default precision when a distribution is made, whatever network it
    is for. Distributions and transforms hold tensors as attributes, and others that do.
    """
    if isinstance(value, Tensor):
        return value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
    if isinstance(value, list):
        return [_cast(each, parameter) for each in value]
    if not isinstance(value, torch.distributions.Distribution | Transform):
        return value
    copied = copy.copy(value)
    vars(copied).update((name, _cast(each, parameter)) for name, each in vars(copied).items())
    return copied
