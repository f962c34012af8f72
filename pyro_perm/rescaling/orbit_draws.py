r"""Exact draws along the orbits of units.

The law of ``t`` along the orbit of a unit is the density proportional to ``exp h(t)``, see
:mod:`pyro_perm.rescaling.integral`. Where ``B = D = 0``, as under a Normal prior of mean zero,
:math:`e^{2t}` follows the generalized inverse Gaussian distribution
:math:`GIG(a / 2, A, C) \propto x^{a / 2 - 1} \exp(-(A x + C / x) / 2)`. Samplers for that one
(Hoermann & Leydold 2014; Devroye 2014) rest on its log-concavity, which other means break.

Here draws are accepted from the piecewise exponential hats of
:mod:`pyro_perm.rescaling._rejection`, whose excess is a bound of ``-h''`` on each cell, for its
terms are monotone. So they are exact but for rounding: what lies outside of the cells has a
probability below ``1e-15``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_perm.rescaling._arrays import Array, as_array, as_index, as_tensor, namespace, numbers
from pyro_perm.rescaling._exponent import Exponent, align, powers
from pyro_perm.rescaling._modes import find_modes
from pyro_perm.rescaling._nodes import sum_nodes
from pyro_perm.rescaling._rejection import Hats
from pyro_perm.rescaling._windows import Windows, find_windows
from pyro_perm.rescaling.degrees import Degrees
from pyro_perm.rescaling.units import UnitEntries, orbit_exponent

# Nats below the mode that no draw reaches.
_DEPTH = 37.0
_AT_ONCE = 4096


@torch.no_grad()
def sample_log_scales(
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    a: float,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Independent draws of ``t`` with densities proportional to ``exp h(t)``.

    :param A: as for :func:`~pyro_perm.rescaling.orbit_integral`, like the other coefficients.
    :param generator: source of randomness; the global one if None.
    :returns: shape of the coefficients, in double precision.
    :raises ValueError: where the density cannot be normalized.
    """
    shape = torch.broadcast_shapes(A.shape, B.shape, C.shape, D.shape)
    exponent = Exponent.of(A, B, C, D, a)
    return _sample_all(exponent, generator).view(shape)


def sample_along_orbits(
    entries: UnitEntries, degrees: Degrees, *, generator: torch.Generator | None = None
) -> Tensor:
    """By how much to rescale units so that they follow a factorized Gaussian along their orbits.

    With the prior's means and scales, ``degrees.rescale(values, t)`` is a draw of the prior given
    the orbit of the values, and does not depend on where on it they are.

    :param entries: values of the units, means and scales, shapes ``(*batch, n, width)``.
    :param degrees: how units are rescaled.
    :param generator: source of randomness; the global one if None.
    :returns: ``t``, shape ``(*batch, n)``, in double precision.
    :raises ValueError: where the density cannot be normalized.
    """
    shape = torch.broadcast_shapes(*(kind.shape for kind in entries))
    return _sample_all(orbit_exponent(entries, degrees), generator).view(shape[:-1])


def _sample_all(exponent: Exponent, generator: torch.Generator | None) -> Tensor:
    if not len(exponent):
        return as_tensor(exponent.squares[0])
    with np.errstate(all="ignore"):
        draws = [_sample(some, generator) for some in exponent.chunks(_AT_ONCE)]
    return torch.cat(draws)


def _sample(exponent: Exponent, generator: torch.Generator | None) -> Tensor:
    balanced, origin = exponent.balance()
    windows = find_windows(balanced, *find_modes(balanced), _DEPTH)
    exponent.require_integrals(windows.num_nodes[: len(exponent)])
    windows = _one_window_each(windows, len(exponent), generator)
    local, left = windows.exponent, windows.left
    num_cells = math.ceil(float(windows.num_nodes.max()))
    width = (windows.right - left) / num_cells
    t = left + width * numbers(num_cells + 1, width)
    parts = (left, width, local.rise(t), _excess(local, t, width))
    hats = Hats(*map(as_tensor, parts))

    def log_density(some: Tensor, points: Tensor) -> Tensor:
        return as_tensor(local.take(as_index(some)).rise(as_array(points)))

    return hats.sample(log_density, generator) + as_tensor(windows.anchor + origin)


def _one_window_each(windows: Windows, num: int, generator: torch.Generator | None) -> Windows:
    """Of pairs with two windows one, by their masses."""
    if windows.pair is None:
        return windows
    log_mass = sum_nodes(windows).log_integral + windows.exponent.value()
    log_mass = as_tensor(log_mass + windows.exponent.a * windows.anchor)
    several = as_tensor(windows.pair)[num:]
    odds = (log_mass[num:] - log_mass[several]).sigmoid()
    coin = torch.rand(odds.shape, dtype=odds.dtype, device=odds.device, generator=generator)
    chosen = torch.arange(num, device=odds.device)
    other = torch.arange(num, num + len(odds), device=odds.device)
    chosen[several] = torch.where(coin < odds, other, several)
    return windows.take(as_index(chosen))


def _excess(exponent: Exponent, t: Array, width: Array) -> Array:
    """A bound of ``h`` above its chord on each cell."""
    xp, x = namespace(t), powers(t)
    crosses = align(exponent.crosses, t) * x
    least = xp.minimum(crosses[:, 1:], crosses[:, :-1])
    squares = align(exponent.squares, t) * x * x
    curvature = 2 * (squares[0, 1:] + squares[1, :-1]) - least[0] - least[1]
    return xp.clip(curvature, 0, None) * (width * width / 8)
