r"""Densities of the orbits of units under rescaling, from their entries.

For all pairs of a factor ``i``, with means ``m_i`` and scales ``s_i``, and a unit ``j`` with values
``w_j``,

.. math:: L_{ij} = \log \int q_i(t . w_j)\, e^{a t}\, dt
          = \log q_i(0) + \log I(A_{ij}, B_{ij}, C_{ij}, D_{ij}),

where the sums over incoming entries are matrix products :math:`A = (1 / s^2) (w^2)^T` and
:math:`B = (m / s^2) w^T`, those over outgoing ones are ``C`` and ``D``, and entries of degree zero
add :math:`-\tfrac12 \sum (w^2 - 2 w m) / s^2`.

**Gradient.** Let :math:`R_{ij}` be the derivative of an objective in :math:`L_{ij}`, ``r`` the sums
of its rows, :math:`R^{(1)} = R \circ E[e^t]` and :math:`R^{(2)} = R \circ E[e^{2t}]` with the means
under the density along the orbit of pair ``ij``. Then for incoming entries

.. math::
    \partial w &= R^{(1)T} (m / s^2) - w \circ R^{(2)T} (1 / s^2), \\
    \partial m &= (R^{(1)} w - r m) / s^2, \\
    \partial s &= (R^{(2)} w^2 - 2 m \circ R^{(1)} w + r m^2) / s^3 - r / s ,

for outgoing ones the same with ``-t``, and for the others with ones in place of the means.

Entries that are rescaled can't be centered, as permutations alone would allow: all is computed in
double precision, whose rounding costs about ``1e-16 sum m^2 / s^2`` nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_perm.rescaling._arrays import Array, as_array, as_index, as_tensor, empty, positions
from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._modes import highest_value
from pyro_perm.rescaling._once import refuse_second_derivatives
from pyro_perm.rescaling._quadrature import bound, integrate
from pyro_perm.rescaling.degrees import Degrees
from pyro_perm.rescaling.integral import TOLERANCE

_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
# A pair that lies this many nats below the unit's own has no share in anything.
_NEGLIGIBLE = 40.0


class UnitEntries(NamedTuple):
    """Everything that belongs to units, shapes ``(*batch, n, width)``; or gradients of it.

    Attributes:
        values: what was drawn.
        locs: means of the factors.
        scales: their standard deviations.
    """

    values: Tensor
    locs: Tensor
    scales: Tensor


@dataclass(frozen=True, eq=False)
class OrbitPairs:
    """Density of every unit's orbit under every unit's factor.

    Attributes:
        log_densities: ``L[i, j]`` in nats and double precision, shape ``(*batch, n, n)``; an upper
            bound of it where that is 40 nats below what ``w_j`` has by its own factor.
        means: of ``e^{2t}``, ``e^t``, ``e^{-2t}``, ``e^{-t}``, shape ``(4, *batch, n, n)``; zero
            where the pair is bounded only.
        entries: those of the units, in double precision.
        degrees: how they are rescaled.
    """

    log_densities: Tensor
    means: Tensor
    entries: UnitEntries
    degrees: Degrees

    def gradients(self, weights: Tensor) -> UnitEntries:
        """Gradients of ``sum_ij R_ij L_ij`` in values, locs and scales.

        :param weights: ``R``, shape ``(*batch, n, n)``.
        """
        weights = weights.double()
        squares_in, means_in, squares_out, means_out = self.means * weights
        rows = weights.sum(-1, keepdim=True)
        parts = [
            _gradients(part, first, second, rows)
            for part, first, second in zip(
                _parts(self.entries, self.degrees),
                (means_in, means_out, weights),
                (squares_in, squares_out, weights),
                strict=True,
            )
        ]
        return UnitEntries(*(self.degrees.join(*kind) for kind in zip(*parts, strict=True)))


@torch.no_grad()
def orbit_pairs(
    entries: UnitEntries, degrees: Degrees, *, tolerance: float = TOLERANCE
) -> OrbitPairs:
    """``L[i, j] = log int q_i(t . w_j) e^{a t} dt`` of all pairs, without graph.

    :param entries: the units'.
    :param degrees: how they are rescaled.
    :param tolerance: accepted error of each in nats.
    :raises ValueError: where an integral diverges, see
        :func:`~pyro_perm.rescaling.orbit_integral`.
    """
    entries = UnitEntries(*(kind.double() for kind in entries))
    incoming, outgoing, fixed = _parts(entries, degrees)
    squares, crosses = _pair_sums(incoming, outgoing)
    constant = _log_density_of_zero(entries).unsqueeze(-1)
    if degrees.num_fixed:
        fixed_squares, fixed_crosses = _pair_sums(fixed)
        constant = constant + fixed_crosses[0] - 0.5 * fixed_squares[0]
    shape = squares.shape[1:]
    exponent = Exponent(
        as_array(squares.flatten(1)), as_array(crosses.flatten(1)), float(degrees.jacobian)
    )
    densities = as_tensor(bound(exponent)).view(shape).add_(constant)
    where = _pairs_that_count(densities, entries, squares, crosses)
    log_integrals, some_means = integrate(exponent.take(where), tolerance)
    flat, constants = as_array(densities).reshape(-1), as_array(constant.expand(shape))
    flat[where] = log_integrals + constants.reshape(-1)[where]
    means = empty((4, len(exponent)), flat)
    means[:] = 0.0
    means[:, where] = some_means
    return OrbitPairs(densities, as_tensor(means).view(4, *shape), entries, degrees)


def log_orbit_mass(
    entries: UnitEntries, degrees: Degrees, *, tolerance: float = TOLERANCE
) -> Tensor:
    r"""``log int f(t . w) e^{a t} dt - log f(w)`` of each unit under its own factor.

    The density of the unit's orbit relative to that of the unit, for a guide's factors as for a
    Normal prior, whatever its means and scales. Differentiable once, in all entries.

    >>> import torch
    >>> from pyro_perm.rescaling import Degrees, UnitEntries, log_orbit_mass
    >>> w = torch.tensor([[1.0, 1.0]])  # one weight comes in, one goes out
    >>> prior = UnitEntries(w, torch.zeros(1, 2), torch.ones(1, 2))
    >>> log_orbit_mass(prior, Degrees.of([1, -1]))  # log K_0(1) + 1
    tensor([0.1349], dtype=torch.float64)

    :param entries: shapes that broadcast to ``(*batch, n, width)``.
    :param degrees: how they are rescaled.
    :param tolerance: accepted error of each in nats.
    :returns: shape ``(*batch, n)``, in nats and double precision.
    :raises ValueError: where an integral diverges.
    :raises RuntimeError: when second derivatives are asked for.
    """
    result: Tensor = _LogOrbitMass.apply(*torch.broadcast_tensors(*entries), degrees, tolerance)
    return result


def orbit_exponent(entries: UnitEntries, degrees: Degrees) -> Exponent:
    """Coefficients of each unit under its own factor, flattened."""
    values, locs, scales = (kind.double() for kind in torch.broadcast_tensors(*entries))
    relative = values / scales
    terms = (relative.square(), (locs / scales).mul_(relative))
    squares, crosses = (
        torch.stack([part.sum(-1).flatten() for part in degrees.split(kind)[:2]]) for kind in terms
    )
    return Exponent(as_array(squares), as_array(crosses), float(degrees.jacobian))


@torch.no_grad()
def smallest_divergences(
    locs: Tensor, scales: Tensor, image_locs: Tensor, image_scales: Tensor, degrees: Degrees
) -> Tensor:
    """``min_t 2 KL(t . q_j || q_i)`` without ``sum log(s_i^2 / s_j^2)``, for all pairs.

    :param locs: those of ``q_i``, shape ``(n, width)``, as ``scales``.
    :param image_locs: those of ``q_j``, as ``image_scales``.
    :returns: shape ``(n, n)``, in nats.
    """
    factors = UnitEntries(image_locs.double(), locs.double(), scales.double())
    incoming, outgoing, fixed = _parts(factors, degrees)
    spreads = degrees.split(image_scales.double().square())
    squares, crosses = _pair_sums(incoming, outgoing)
    for part, spread, sums in zip((incoming, outgoing), spreads, squares, strict=False):
        sums += part.scales.square().reciprocal_() @ spread.mT
    exponent = Exponent(
        as_array(squares.flatten(1)), as_array(crosses.flatten(1)), float(degrees.jacobian)
    )
    fit = as_tensor(highest_value(exponent)).view(squares.shape[1:])
    fixed_squares, fixed_crosses = _pair_sums(fixed)
    fixed_squares += fixed.scales.square().reciprocal_() @ spreads[2].mT
    fit += (fixed_crosses - 0.5 * fixed_squares)[0]
    constant = (locs / scales).double().square().sum(-1, keepdim=True) - locs.shape[-1]
    return constant - 2 * fit


class _LogOrbitMass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        locs: Tensor,
        scales: Tensor,
        degrees: Degrees,
        tolerance: float,
    ) -> Tensor:
        exponent = orbit_exponent(UnitEntries(values, locs, scales), degrees)
        log_integrals, means = integrate(exponent, tolerance)
        shape = values.shape[:-1]
        ctx.save_for_backward(as_tensor(means).view(4, *shape), values, locs, scales)
        ctx.degrees = degrees
        return as_tensor(log_integrals - exponent.value()).view(shape)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        means, *inputs = ctx.saved_tensors
        with torch.no_grad():
            grads = _mass_gradients(means, UnitEntries(*inputs), ctx.degrees, grad_output)
        return *refuse_second_derivatives(grads, (grad_output, *inputs)), None, None


def _mass_gradients(
    means: Tensor, entries: UnitEntries, degrees: Degrees, grad_output: Tensor
) -> UnitEntries:
    entries = UnitEntries(*(kind.double() for kind in entries))
    squares_in, means_in, squares_out, means_out = (means - 1).mul_(grad_output).unsqueeze(-1)
    incoming, outgoing, fixed = _parts(entries, degrees)
    parts = (
        _own_gradients(incoming, means_in, squares_in),
        _own_gradients(outgoing, means_out, squares_out),
        UnitEntries(*map(torch.zeros_like, fixed)),
    )
    return UnitEntries(*(degrees.join(*kind) for kind in zip(*parts, strict=True)))


def _parts(entries: UnitEntries, degrees: Degrees) -> list[UnitEntries]:
    """Incoming, outgoing and fixed entries."""
    return [UnitEntries(*part) for part in zip(*map(degrees.split, entries), strict=True)]


def _pair_sums(*parts: UnitEntries) -> tuple[Tensor, Tensor]:
    """``sum w_j^2 / s_i^2`` and ``sum w_j m_i / s_i^2``, shapes ``(parts, *batch, n, n)``."""
    sums = []
    for values, locs, scales in parts:
        precision = scales.square().reciprocal_()
        sums += [precision @ values.square().mT, precision.mul_(locs) @ values.mT]
    return torch.stack(sums[::2]), torch.stack(sums[1::2])


def _pairs_that_count(
    bounds: Tensor, entries: UnitEntries, squares: Tensor, crosses: Tensor
) -> Array:
    """Numbers of the pairs of units with themselves, and of all whose bounds are near these."""
    own_squares, own_crosses = (x.diagonal(dim1=-2, dim2=-1) for x in (squares, crosses))
    curvature = (2 * own_squares).sub_(own_crosses).sum(0).clamp_min_(1.0)
    own = _log_densities(entries).sub_(curvature.log_(), alpha=0.5)
    counts = bounds > (own - _NEGLIGIBLE).unsqueeze(-2)
    counts.diagonal(dim1=-2, dim2=-1).fill_(True)
    return positions(as_index(counts.flatten()))


def _log_density_of_zero(entries: UnitEntries) -> Tensor:
    _, locs, scales = entries
    terms = (locs / scales).square_().mul_(0.5).add_(scales.log())
    return terms.sum(-1).neg_().sub_(_HALF_LOG_2_PI * locs.shape[-1])


def _log_densities(entries: UnitEntries) -> Tensor:
    values, locs, scales = entries
    terms = ((values - locs) / scales).square_().mul_(0.5).add_(scales.log())
    return terms.sum(-1).neg_().sub_(_HALF_LOG_2_PI * locs.shape[-1])


def _gradients(part: UnitEntries, first: Tensor, second: Tensor, rows: Tensor) -> UnitEntries:
    """Those of ``sum R^(1) B - R^(2) A / 2 + r log q(0)`` in one part of the entries."""
    values, locs, scales = part
    precision = scales.square().reciprocal_()
    for_values = (first.mT @ (precision * locs)).addcmul_(values, second.mT @ precision, value=-1)
    mixed = first @ values
    for_scales = (second @ values.square()).addcmul_(locs, mixed, value=-2)
    for_scales.addcmul_(rows * locs, locs).mul_(precision).sub_(rows).div_(scales)
    for_locs = mixed.addcmul_(rows, locs, value=-1).mul_(precision)
    return UnitEntries(for_values, for_locs, for_scales)


def _own_gradients(part: UnitEntries, first: Tensor, second: Tensor) -> UnitEntries:
    """Those of ``sum_i first_i B_i - second_i A_i / 2``."""
    values, locs, scales = part
    precision = scales.square().reciprocal_()
    for_values = (first * locs).addcmul_(second, values, value=-1).mul_(precision)
    for_locs = first * values * precision
    for_scales = (second * values).addcmul_(first, locs, value=-2).mul_(values)
    return UnitEntries(for_values, for_locs, for_scales.mul_(precision).div_(scales))
