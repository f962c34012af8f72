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

Products of entries are taken in the precision of the entries, their sums over pairs of a unit with
itself in double precision, and everything after that. Entries that are rescaled can't be centered,
as permutations alone would allow: rounding costs about ``sum m^2 / s^2`` machine epsilons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_perm.rescaling._arrays import Array, as_array, as_index, as_tensor, empty, positions
from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._modes import highest_value
from pyro_perm.rescaling._once import refuse_second_derivatives
from pyro_perm.rescaling._quadrature import bound, integrate
from pyro_perm.rescaling.degrees import Degrees
from pyro_perm.rescaling.integral import tolerance_for

_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
# A pair has no share in anything if it lies further below the unit's own than the tolerance below
# one, by this factor: 23 nats for units in single precision, 41 in double precision.
_NEGLIGIBLE = 2.0


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
            bound of it where that is the square of the tolerance, or less, of what ``w_j`` has by
            its own factor.
        means: of ``e^{2t}``, ``e^t``, ``e^{-2t}``, ``e^{-t}``, shape ``(4, *batch, n, n)``; zero
            where the pair is bounded only.
        entries: those of the units.
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
        dtype = self.entries.values.dtype
        squares_in, means_in, squares_out, means_out = (self.means * weights).to(dtype)
        rows, weights = weights.sum(-1, keepdim=True).to(dtype), weights.to(dtype)
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
    entries: UnitEntries, degrees: Degrees, *, tolerance: float | None = None
) -> OrbitPairs:
    """``L[i, j] = log int q_i(t . w_j) e^{a t} dt`` of all pairs, without graph.

    :param entries: the units', in the precision to take products in.
    :param degrees: how they are rescaled.
    :param tolerance: accepted error of each in nats, by default as fits the precision.
    :raises ValueError: where an integral diverges, see
        :func:`~pyro_perm.rescaling.orbit_integral`.
    """
    tolerance = tolerance or tolerance_for(entries.values.dtype)
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
    depth = -_NEGLIGIBLE * math.log(tolerance)
    where = _pairs_that_count(densities, entries, squares, crosses, depth)
    log_integrals, some_means = integrate(exponent.take(where), tolerance)
    flat, constants = as_array(densities).reshape(-1), as_array(constant.expand(shape))
    flat[where] = log_integrals + constants.reshape(-1)[where]
    means = empty((4, len(exponent)), flat)
    means[:] = 0.0
    means[:, where] = some_means
    return OrbitPairs(densities, as_tensor(means).view(4, *shape), entries, degrees)


def log_orbit_mass(
    entries: UnitEntries, degrees: Degrees, *, tolerance: float | None = None
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
    :param tolerance: accepted error of each in nats, by default as fits their precision.
    :returns: shape ``(*batch, n)``, in nats and double precision.
    :raises ValueError: where an integral diverges.
    :raises RuntimeError: when second derivatives are asked for.
    """
    (mass,) = _log_orbit_masses((entries,), (degrees,), tolerance)
    return mass


def log_orbit_mass_ratio(
    guide: UnitEntries,
    guide_degrees: Degrees,
    prior: UnitEntries,
    prior_degrees: Degrees,
    *,
    tolerance: float | None = None,
) -> Tensor:
    """:func:`log_orbit_mass` under a guide minus that under a prior, integrated together.

    :param guide: entries of the units, shapes that broadcast to ``(*batch, n, width)``.
    :param guide_degrees: how they are rescaled.
    :param prior: entries of the same units as far as they are rescaled; others may be missing.
    :param prior_degrees: how these are.
    :param tolerance: as for :func:`log_orbit_mass`, which also says what is returned and raised.
    """
    of_guide, of_prior = _log_orbit_masses(
        (guide, prior), (guide_degrees, prior_degrees), tolerance
    )
    return of_guide - of_prior


def _log_orbit_masses(
    laws: Sequence[UnitEntries], degrees: tuple[Degrees, ...], tolerance: float | None
) -> tuple[Tensor, ...]:
    tensors = [kind for law in laws for kind in torch.broadcast_tensors(*law)]
    if tolerance is None:
        tolerance = max(tolerance_for(kind.dtype) for kind in tensors)
    masses: tuple[Tensor, ...] = _LogOrbitMasses.apply(degrees, tolerance, *tensors)
    return masses


def orbit_exponent(entries: UnitEntries, degrees: Degrees) -> Exponent:
    """Coefficients of each unit under its own factor, flattened."""
    values, locs, scales = torch.broadcast_tensors(*entries)
    relative = values / scales
    terms = (relative.square(), (locs / scales).mul_(relative))
    squares, crosses = (
        torch.stack([part.sum(-1, dtype=torch.float64).flatten() for part in parts[:2]])
        for parts in map(degrees.split, terms)
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


class _LogOrbitMasses(torch.autograd.Function):
    """Of units under several laws, whose integrals are found together."""

    @staticmethod
    def forward(
        ctx: Any, degrees: tuple[Degrees, ...], tolerance: float, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        exponents = [
            orbit_exponent(entries, each)
            for entries, each in zip(_threes(tensors), degrees, strict=True)
        ]
        exponent = reduce(Exponent.join, exponents)
        log_integrals, means = map(as_tensor, integrate(exponent, tolerance))
        masses = log_integrals - as_tensor(exponent.value())
        sizes = [len(each) for each in exponents]
        shapes = [entries.values.shape[:-1] for entries in _threes(tensors)]
        ctx.degrees = degrees
        ctx.means = [
            each.view(4, *shape) for each, shape in zip(means.split(sizes, -1), shapes, strict=True)
        ]
        ctx.save_for_backward(*tensors)
        return tuple(x.view(shape) for x, shape in zip(masses.split(sizes), shapes, strict=True))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        with torch.no_grad():
            grads: list[Tensor | None] = []
            for entries, degrees, means, grad_output, asked in zip(
                _threes(tensors), ctx.degrees, ctx.means, grad_outputs, _threes(needed), strict=True
            ):
                grads += _mass_gradients(means, entries, degrees, grad_output, asked)
        refused = iter(
            refuse_second_derivatives(
                [grad for grad in grads if grad is not None], (*grad_outputs, *tensors)
            )
        )
        return None, None, *(None if grad is None else next(refused) for grad in grads)


def _threes(kinds: Sequence[Any]) -> list[UnitEntries]:
    """Values, locs and scales of each law."""
    return [UnitEntries(*kinds[k : k + 3]) for k in range(0, len(kinds), 3)]


def _mass_gradients(
    means: Tensor, entries: UnitEntries, degrees: Degrees, grad_output: Tensor, asked: UnitEntries
) -> list[Tensor | None]:
    """Those in values, locs and scales as far as asked for."""
    weights = (means - 1).mul_(grad_output).unsqueeze(-1).to(entries.values.dtype)
    squares_in, means_in, squares_out, means_out = weights
    incoming, outgoing, fixed = _parts(entries, degrees)
    grads: list[Tensor | None] = []
    for gradient, is_asked, nothing in zip(_OWN_GRADIENTS, asked, fixed, strict=True):
        if not is_asked:
            grads.append(None)
            continue
        parts = gradient(incoming, means_in, squares_in), gradient(outgoing, means_out, squares_out)
        grads.append(degrees.join(*parts, torch.zeros_like(nothing)))
    return grads


def _parts(entries: UnitEntries, degrees: Degrees) -> list[UnitEntries]:
    """Incoming, outgoing and fixed entries."""
    return [UnitEntries(*part) for part in zip(*map(degrees.split, entries), strict=True)]


def _pair_sums(*parts: UnitEntries) -> tuple[Tensor, Tensor]:
    """``sum w_j^2 / s_i^2`` and ``sum w_j m_i / s_i^2``, shapes ``(parts, *batch, n, n)``."""
    sums = []
    for values, locs, scales in parts:
        precision = scales.square().reciprocal_()
        sums += [precision @ values.square().mT, precision.mul_(locs) @ values.mT]
    return torch.stack(sums[::2]).double(), torch.stack(sums[1::2]).double()


def _pairs_that_count(
    bounds: Tensor, entries: UnitEntries, squares: Tensor, crosses: Tensor, depth: float
) -> Array:
    """Numbers of the pairs of units with themselves, and of all whose bounds are near these."""
    own_squares, own_crosses = (x.diagonal(dim1=-2, dim2=-1) for x in (squares, crosses))
    curvature = (2 * own_squares).sub_(own_crosses).sum(0).clamp_min_(1.0)
    own = _log_densities(entries).sub_(curvature.log_(), alpha=0.5)
    counts = bounds > (own - depth).unsqueeze(-2)
    counts.diagonal(dim1=-2, dim2=-1).fill_(True)
    return positions(as_index(counts.flatten()))


def _log_density_of_zero(entries: UnitEntries) -> Tensor:
    _, locs, scales = entries
    terms = (locs / scales).square_().mul_(0.5).add_(scales.log())
    return terms.sum(-1, dtype=torch.float64).neg_().sub_(_HALF_LOG_2_PI * locs.shape[-1])


def _log_densities(entries: UnitEntries) -> Tensor:
    values, locs, scales = entries
    terms = ((values - locs) / scales).square_().mul_(0.5).add_(scales.log())
    return terms.sum(-1, dtype=torch.float64).neg_().sub_(_HALF_LOG_2_PI * locs.shape[-1])


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


def _gradient_in_values(part: UnitEntries, first: Tensor, second: Tensor) -> Tensor:
    """That of ``sum_i first_i B_i - second_i A_i / 2``."""
    values, locs, scales = part
    return (first * locs).addcmul_(second, values, value=-1).div_(scales).div_(scales)


def _gradient_in_locs(part: UnitEntries, first: Tensor, second: Tensor) -> Tensor:
    values, _, scales = part
    return (first * values).div_(scales).div_(scales)


def _gradient_in_scales(part: UnitEntries, first: Tensor, second: Tensor) -> Tensor:
    values, locs, scales = part
    relative = values / scales
    changes = (second * values).addcmul_(first, locs, value=-2)
    return changes.mul_(relative).div_(scales).div_(scales)


_OWN_GRADIENTS = (_gradient_in_values, _gradient_in_locs, _gradient_in_scales)
