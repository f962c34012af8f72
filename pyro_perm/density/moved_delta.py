"""What a symmetrized guide puts in place of a site whose units it has permuted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor


class MovedDelta(Delta):
    """A point mass at permuted values, which remembers what the base guide drew.

    The value has been validated before it was permuted, and is not compared, entry by entry, with
    itself.

    :param drawn: the value before.
    :param drawn_from: the base guide's distribution of the site; its density is that of the point
        mass if it is one itself, and otherwise has a site of its own.
    :param move: permutes a tensor of the site's shape.
    :param v: the permuted value, where it is known.
    """

    def __init__(
        self,
        drawn: Tensor,
        drawn_from: Any,
        move: Callable[[Tensor], Tensor],
        *,
        v: Tensor | None = None,
    ) -> None:
        self.drawn, self.drawn_from, self.move = drawn, drawn_from, move
        log_density = drawn_from.log_density if isinstance(drawn_from, Delta) else 0.0
        v = move(drawn) if v is None else v
        super().__init__(v, log_density, drawn_from.event_dim, validate_args=False)

    @property
    def variance(self) -> Tensor:
        """Zero.

        :raises ValueError: if the base guide's distribution is no point mass, whose variance
            somebody looks for here.
        """
        if not isinstance(self.drawn_from, Delta):
            raise ValueError(
                "a permuted draw is a point without a variance, so local reparametrization and "
                "flipout do not work with it: train with AutoSymmetrized(base, permute=False), "
                "whose objective is the same"
            )
        variance: Tensor = super().variance
        return variance

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MovedDelta:
        """The same with another batch shape."""
        v = self.v.expand(*batch_shape, *self.event_shape)
        return MovedDelta(self.drawn, self.drawn_from.expand(batch_shape), self.move, v=v)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The value."""
        value: Tensor = super().rsample(torch.Size(sample_shape)) if sample_shape else self.v
        return value

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at the value, minus infinity elsewhere; shape ``(*batch)``."""
        own = x is self.v
        log_prob: Tensor = self.log_density.expand(self.batch_shape) if own else super().log_prob(x)
        return log_prob


def as_drawn(point: Delta) -> Tensor:
    """The value of a point mass as the base guide drew it, before its units were permuted."""
    drawn: Tensor = point.drawn if isinstance(point, MovedDelta) else point.v
    return drawn
