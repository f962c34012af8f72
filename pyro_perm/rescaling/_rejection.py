r"""Exact draws from many densities on intervals, by rejection from piecewise exponential hats.

On a cell of width ``d`` between two nodes a log-density ``h`` exceeds its chord by at most
:math:`d^2 / 8 \max(-h'')`. Chord plus excess is the hat: its mass on a cell and its inverse
distribution function are those of an exponential, and a draw from it is accepted with probability
``exp(h - hat)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# An exponential that varies less over a cell is uniform.
_FLAT = 1e-9


@dataclass(frozen=True)
class Hats:
    """Hats over the log-densities of ``n`` variables, each on equal cells of its own.

    Attributes:
        left: where the cells of each begin, shape ``(n,)``.
        width: that of its cells, shape ``(n,)``.
        heights: log-densities at the nodes, at most zero or thereabouts, shape ``(nodes, n)``.
        excess: by how much the log-density may exceed its chord, shape ``(nodes - 1, n)``.
    """

    left: Tensor
    width: Tensor
    heights: Tensor
    excess: Tensor

    def sample(
        self,
        log_density: Callable[[Tensor, Tensor], Tensor],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A draw of each variable, shape ``(n,)``.

        :param log_density: of some variables, by their numbers, at given points.
        :raises ValueError: where a density exceeds its hat.
        """
        cumulative = self._masses().mT.contiguous().cumsum(-1)
        result = torch.empty_like(self.left)
        pending = torch.arange(len(result), device=result.device)
        while len(pending):
            points, hat = self._draw(cumulative, pending, generator)
            log_ratio = log_density(pending, points) - hat
            if bool((log_ratio > 1e-9).any()):
                raise ValueError(
                    "a density along the orbit of a unit has features that are too fine to draw "
                    "from it; smoother priors can be drawn from"
                )
            accepted = _uniform(pending, points.dtype, generator).log_() < log_ratio
            result[pending[accepted]] = points[accepted]
            pending = pending[~accepted]
        return result

    def _masses(self) -> Tensor:
        """Of the cells, each column up to a factor."""
        rise = self.heights.diff(dim=0).abs_()
        higher = torch.maximum(self.heights[1:], self.heights[:-1]) + self.excess
        mean = torch.where(rise > _FLAT, torch.expm1(-rise).neg_().div_(rise), 1.0)
        return mean.mul_((higher - higher.amax(0)).exp_())

    def _draw(
        self, cumulative: Tensor, pending: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Points under the hats of some variables, and the hats' heights there."""
        sums = cumulative[pending]
        total = sums[:, -1:]
        threshold = (1 - _uniform(pending, total.dtype, generator)).unsqueeze(-1) * total
        cell = torch.searchsorted(sums, threshold).squeeze(-1)
        first, second = self.heights[cell, pending], self.heights[cell + 1, pending]
        rise = second - first
        place = _exponential_place(rise, _uniform(pending, total.dtype, generator))
        points = self.left[pending] + (cell + place) * self.width[pending]
        return points, first + rise * place + self.excess[cell, pending]


def _exponential_place(rise: Tensor, uniform: Tensor) -> Tensor:
    """A draw on ``[0, 1]`` with density proportional to ``exp(rise x)``, by inversion."""
    size = rise.abs()
    fall = torch.log1p(uniform * torch.expm1(-size)).neg_().div_(size)
    fall = torch.where(size > _FLAT, fall, uniform).clamp_(0.0, 1.0)
    return torch.where(rise > 0, 1 - fall, fall)


def _uniform(like: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, dtype=dtype, device=like.device, generator=generator)
