"""Likelihoods: functions of a network's outputs, which return the distribution of observations.

The first dimension of the outputs runs over observations; all others are parts of one. Models with
them can be pickled, as those with priors of :mod:`pyro_perm.networks.priors` can.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

Distribution = dist.TorchDistribution
Likelihood = Callable[[Any], Distribution]


def categorical(logits: Tensor) -> Distribution:
    """Observations ``0`` to ``C - 1``, shape ``(N, ...)``, from logits of shape ``(N, ..., C)``."""
    return dist.Categorical(logits=logits)


def bernoulli(logits: Tensor) -> Distribution:
    """Zeros and ones, from logits of the shape of the observations."""
    bits: Distribution = dist.Bernoulli(logits=logits)
    return bits


def poisson(log_rates: Tensor) -> Distribution:
    """Counts, from the logarithms of their rates."""
    counts: Distribution = dist.Poisson(log_rates.exp())
    return counts


def gaussian(scale: float | Tensor) -> Likelihood:
    """Real observations about the outputs, with a given standard deviation.

    :param scale: one number, or one for each part of an observation.
    """
    return partial(_gaussian, scale)


def _gaussian(scale: float | Tensor, means: Tensor) -> Distribution:
    return dist.Normal(means, scale)


def gaussian_of_learned_scale(initial: float = 1.0) -> Likelihood:
    """The same with one standard deviation that training fits.

    It is the parameter ``noise_scale`` of the model.

    :param initial: value that it starts from.
    """
    return partial(_gaussian_of_learned_scale, initial)


def _gaussian_of_learned_scale(initial: float, means: Tensor) -> Distribution:
    scale = pyro.param(
        "noise_scale", lambda: means.new_tensor(initial), constraint=constraints.positive
    )
    return dist.Normal(means, scale)


def gaussian_of_predicted_scale(outputs: Tensor) -> Distribution:
    """Real observations whose standard deviations the network predicts too.

    :param outputs: shape ``(..., 2 D)``: means, and what softplus makes standard deviations of, for
        observations of shape ``(..., D)``.
    :raises ValueError: if the last dimension is odd.
    """
    if outputs.shape[-1] % 2:
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)} are no means and scales: the last dimension "
            "must be even"
        )
    means, scales = outputs.chunk(2, -1)
    return dist.Normal(means, torch.nn.functional.softplus(scales))
