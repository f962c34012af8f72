"""The loss between two solutions, before and after alignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.modulo.alignment import align
from pyro_perm.program.full_data import Site, log_joint, run

Values = Mapping[str, Tensor]
Loss = Callable[[Values], "float | Tensor"]


@dataclass(frozen=True)
class LossPath:
    """The loss along the straight line between two solutions.

    Attributes:
        fractions: of the way, from 0 to 1, shape ``(num_points,)``.
        losses: there, same shape.
    """

    fractions: Tensor
    losses: Tensor

    @property
    def barrier(self) -> float:
        """The highest rise above the line through the two ends (Entezari et al. 2022, Eq. 1)."""
        chord = torch.lerp(self.losses[0], self.losses[-1], self.fractions)
        return (self.losses - chord).max().item()


@dataclass(frozen=True)
class InterpolationBarrier:
    """The paths to one solution from another, and from its closest permutation.

    Attributes:
        original: from the second solution as it is.
        aligned: from the second solution aligned to the first.
    """

    original: LossPath
    aligned: LossPath


def interpolation_barrier(
    loss: Loss,
    first: Values,
    second: Values,
    symmetry: PermutationSymmetry,
    *,
    num_points: int = 25,
) -> InterpolationBarrier:
    """The linear interpolation barrier between two solutions, before and after alignment.

    Rossi et al. (2023) find that posteriors of Bayesian networks are linearly connected once
    aligned. Usage:

    >>> import pyro, torch
    >>> import pyro_perm as pp
    >>> def model(y):
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([2]).to_event(1))
    ...     pyro.sample("y", pyro.distributions.Normal(w.square().sum(), 0.1), obs=y)
    >>> y = torch.tensor(5.0)
    >>> loss, symmetry = pp.negative_log_joint(model, y), pp.find_symmetry(model, y)
    >>> first, second = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 1.0])}
    >>> barrier = pp.interpolation_barrier(loss, first, second, symmetry)
    >>> barrier.original.barrier > 10, barrier.aligned.barrier
    (True, 0.0)

    :param loss: of values of the latent sites: :func:`negative_log_joint`,
        :func:`negative_log_likelihood`, or one's own.
    :param first: site -> value, such as a guide's median or one draw.
    :param second: likewise.
    :param symmetry: the group, as in :func:`align`.
    :param num_points: number of points on the line, both ends included.
    :raises ValueError: if the two do not fit each other or the symmetry, or for fewer than three
        points.
    """
    if num_points < 3:
        raise ValueError(f"num_points must be at least 3, to see between the ends: {num_points}")
    if first.keys() != second.keys():
        raise ValueError(f"the solutions differ in their sites: {list(first)} and {list(second)}")
    aligned = align(second, symmetry, first).samples
    fractions = torch.linspace(0, 1, num_points, dtype=torch.float64)
    return InterpolationBarrier(
        *(LossPath(fractions, _along(loss, first, end, fractions)) for end in (second, aligned))
    )


def negative_log_joint(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Loss:
    """``-log p(D, w)`` as a function of the latent values, in nats and on all of the data."""

    def loss(values: Values) -> Tensor:
        return -log_joint(_sites(model, values, args, kwargs))

    return loss


def negative_log_likelihood(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Loss:
    """``-log p(D | w)`` as a function of the latent values, in nats and on all of the data."""

    def loss(values: Values) -> Tensor:
        sites = _sites(model, values, args, kwargs)
        return -log_joint({name: site for name, site in sites.items() if name not in values})

    return loss


@torch.no_grad()
def _sites(model: Callable[..., Any], values: Values, args: Any, kwargs: Any) -> dict[str, Site]:
    sites = run(model, args, kwargs, values)
    missing = [name for name, site in sites.items() if site.is_latent and name not in values]
    if missing:
        raise ValueError(f"no value for the latent sites {missing} of the model")
    return sites


def _along(loss: Loss, first: Values, second: Values, fractions: Tensor) -> Tensor:
    losses = [
        loss({site: torch.lerp(first[site], second[site], float(t)) for site in first})
        for t in fractions
    ]
    return torch.tensor([float(value) for value in losses], dtype=torch.float64)
