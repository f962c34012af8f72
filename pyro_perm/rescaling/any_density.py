r"""Orbits under any density with one mode along them, such as priors that are not Normal.

Along the orbit of ``w`` the density is proportional to ``exp h(t)`` with
``h(t) = log f(t . w) + a t``. For factors whose density falls away from zero on both sides such
that ``log f(e^t u)`` is concave in ``t`` (Normal, Laplace, Student, Cauchy, logistic, all centered
at zero), ``h`` is concave. Where it rises above ``max h - depth`` is found on grids ever finer;
there the trapezoidal rule doubles its nodes until its result stands still.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_perm.rescaling._once import refuse_second_derivatives
from pyro_perm.rescaling._rejection import Hats
from pyro_perm.rescaling.degrees import Degrees

#: Log-density of units: entries of shape ``(..., n, width)`` to ``(..., n)``, in nats.
LogDensity = Callable[[Tensor], Tensor]

_FARTHEST = 64.0
_GRID = 65
_FEWEST_NODES, _MOST_NODES = 33, 4097
_DEPTH_OF_DRAWS = 37.0
_CELLS = 512
# By how much more than at the middle of a cell a log-density may exceed its chord.
_EXCESS_MARGIN, _LEAST_EXCESS = 2.0, 1e-6


def log_orbit_mass_under(
    log_density: LogDensity, values: Tensor, degrees: Degrees, *, tolerance: float = 1e-8
) -> Tensor:
    r"""``log int f(t . w) e^{a t} dt - log f(w)`` of each unit under any density.

    Differentiable once, in the values and in what ``log_density`` depends on: the nodes and their
    weights are held constant, which costs the gradient nothing.

    :param log_density: of the units; called with many rescaled copies of them at once.
    :param values: entries of the units, shape ``(*batch, n, width)``.
    :param degrees: how units are rescaled.
    :param tolerance: accepted error in nats, as judged by doubling the number of nodes.
    :returns: shape ``(*batch, n)``, in nats and double precision.
    :raises ValueError: where the density can't be integrated along an orbit to that accuracy.
    :raises RuntimeError: when second derivatives are asked for.
    """
    values = values.double()
    with torch.no_grad():
        along = _Along(log_density, values, degrees)
        left, right = along.support(-math.log(tolerance) + math.log(4))
        log_integral, t, weights = _integrate(along, left, right, tolerance)
    here = log_density(values).double()
    if not torch.is_grad_enabled():
        return log_integral - here
    heights = along(t)
    change = (weights * (heights - heights.detach())).sum(0)
    result: Tensor = _Once.apply(log_integral + change - here, heights)
    return result


@torch.no_grad()
def sample_along_orbits_under(
    log_density: LogDensity,
    values: Tensor,
    degrees: Degrees,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """As :func:`~pyro_perm.rescaling.sample_along_orbits`, under any density.

    Draws are accepted from hats over 512 cells, whose excess is twice that at the middle of a cell.
    A draw at which the density exceeds its hat raises, so that none comes from a wrong law
    unnoticed.

    :param log_density: of the units; called with many rescaled copies of them at once.
    :param values: entries of the units, shape ``(*batch, n, width)``.
    :param degrees: how units are rescaled.
    :param generator: source of randomness; the global one if None.
    :returns: ``t``, shape ``(*batch, n)``, in double precision.
    :raises ValueError: where a density can't be normalized, or is too rough along an orbit.
    """
    along = _Along(log_density, values.double(), degrees)
    left, right = along.support(_DEPTH_OF_DRAWS)
    t = _nodes(left, right, 2 * _CELLS + 1)
    heights = along(t)
    top = heights.amax(0)
    heights -= top
    chords = 0.5 * (heights[:-2:2] + heights[2::2])
    excess = (heights[1::2] - chords).clamp_min(0).mul(_EXCESS_MARGIN).add(_LEAST_EXCESS)

    def log_density_at(some: Tensor, points: Tensor) -> Tensor:
        at = left.flatten().index_copy(0, some, points).view_as(left)
        return (along(at.unsqueeze(0))[0] - top).flatten()[some]

    hats = Hats(
        left.flatten(),
        ((right - left) / _CELLS).flatten(),
        heights[::2].flatten(1),
        excess.flatten(1),
    )
    return hats.sample(log_density_at, generator).view_as(left)


class _Along:
    """``h(t)`` for the orbits of units.

    :param log_density: of the units.
    :param values: of the units, shape ``(*batch, n, width)``.
    :param degrees: how they are rescaled.
    """

    def __init__(self, log_density: LogDensity, values: Tensor, degrees: Degrees) -> None:
        self._log_density = log_density
        self._values = values
        self._degrees = degrees

    def __call__(self, t: Tensor) -> Tensor:
        """At points of shape ``(k, *batch, n)``."""
        rescaled = self._degrees.rescale(self._values.expand(*t.shape, -1), t)
        return self._log_density(rescaled).double() + self._degrees.jacobian * t

    def support(self, depth: float) -> tuple[Tensor, Tensor]:
        """Where ``h`` is less than ``depth`` below its maximum, shapes ``(*batch, n)``."""
        center = self._degrees.balance(self._values)
        left, right = center - _FARTHEST, center + _FARTHEST
        while True:
            t = _nodes(left, right, _GRID)
            heights = self(t)
            high = heights >= heights.amax(0) - depth
            if bool((high[0] | high[-1] | heights.isnan().any(0)).any()):
                raise ValueError(
                    "the integral over a unit's scales diverges, or its density is not a number"
                )
            first, last = high.int().argmax(0), _GRID - 1 - high.flip(0).int().argmax(0)
            new_left = t.gather(0, (first - 1).unsqueeze(0))[0]
            new_right = t.gather(0, (last + 1).unsqueeze(0))[0]
            if bool(((new_right - new_left) > 0.5 * (right - left)).all()):
                return new_left, new_right
            left, right = new_left, new_right


def _nodes(left: Tensor, right: Tensor, num: int) -> Tensor:
    """Equidistant ones, shape ``(num, *batch, n)``."""
    shares = torch.linspace(0, 1, num, dtype=left.dtype, device=left.device)
    return left + shares.view(num, *(1,) * left.dim()) * (right - left)


def _integrate(
    along: _Along, left: Tensor, right: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-integrals, nodes and their weights."""
    before, num = torch.full_like(left, math.inf), _FEWEST_NODES
    while num <= _MOST_NODES:
        t = _nodes(left, right, num)
        heights = along(t)
        total = heights.logsumexp(0)
        result = total + ((right - left) / (num - 1)).log()
        # The error falls at least as the square of the step.
        if bool(((result - before).abs() <= 3 * tolerance).all()):
            return result, t, (heights - total).exp()
        before, num = result, 2 * num - 1
    raise ValueError(
        f"{_MOST_NODES} nodes do not integrate a density along the orbit of a unit to "
        f"{tolerance:g} nats: it is too rough; ask for less, or use a smoother prior"
    )


class _Once(torch.autograd.Function):
    """A value whose gradient can't be differentiated, in whatever the heights depend on."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, heights: Tensor) -> Tensor:
        ctx.save_for_backward(heights)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *refuse_second_derivatives((grad_output,), ctx.saved_tensors), None
