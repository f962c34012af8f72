r"""Layers whose units are rescaled together, coupled by the tensors between them.

An entry between unit ``i`` of one layer and unit ``j`` of the one before is multiplied by
``e^{t_i - t_j}``, and the exponent along an orbit has as many variables as there are units,

.. math:: H(t) = \sum_i h_i(t_i) - \tfrac12 \sum_{ij}
          (\alpha_{ij} e^{2 (t_i - t_j)} - 2 \beta_{ij} e^{t_i - t_j}),

with :math:`\alpha = w^2 / s^2` and :math:`\beta = w m / s^2` of these entries and ``h_i`` as in
:mod:`pyro_perm.rescaling.integral`, from all others. Without :math:`B, D, \beta`, as under a prior
of mean zero, ``H`` is concave. There is no product over units any more:

- **Laplace**, for training: ``log int e^H`` is about
  ``H(t*) + n/2 log 2 pi - 1/2 log det(-H'')`` at the mode ``t*``.
- **Importance sampling**, for certificates: with ``K`` draws of a proposal the logarithm of the
  mean weight lies below ``log int e^H`` on average (Burda et al. 2016); with the place of ``w`` on
  its orbit among them it lies above, if ``w`` was drawn from ``f`` (Sobolev & Vetrov 2019).

The proposal may depend on the orbit and on ``f`` but not on where ``w`` lies, or the upper bound is
void. So Newton's method starts where ``H`` without ``B, D, beta`` has its mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.rescaling.units import UnitEntries

_SWEEPS = 6
_NEWTON_STEPS = 50
_HALVINGS = 40
# A mode is found when a Newton step would gain fewer nats.
_CONVERGED = 1e-12
_NO_MODE = (
    "the density along the orbit of coupled layers has no mode that Newton's method finds; are all "
    "incoming or all outgoing entries of a unit zero?"
)
# Of the proposal's components, in standard deviations.
_WIDTHS = (1.0, 1.2, 1.6)


class Coupling(NamedTuple):
    """Entries between two layers.

    Attributes:
        rows: the layer whose units multiply them by their scale.
        columns: the layer whose units divide them.
        entries: shapes ``(*batch, units of rows, units of columns, entries of a pair)``.
    """

    rows: int
    columns: int
    entries: UnitEntries


class Layer(NamedTuple):
    """Entries that one layer's units alone rescale.

    Attributes:
        incoming: multiplied by the scale, shapes ``(*batch, n, width)``; the width may be zero.
        outgoing: divided by it, likewise.
    """

    incoming: UnitEntries
    outgoing: UnitEntries


@dataclass(frozen=True, eq=False)
class CoupledExponent:
    """``H``, of all units of some layers, side by side.

    Attributes:
        A: shape ``(*batch, n)``.
        B: likewise.
        C: likewise.
        D: likewise.
        alpha: shape ``(*batch, n, n)``, zero between units that share no entry.
        beta: likewise.
        a: the power of the Jacobian of each unit, shape ``(n,)``.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    alpha: Tensor
    beta: Tensor
    a: Tensor

    @classmethod
    def of(cls, layers: Sequence[Layer], couplings: Sequence[Coupling]) -> CoupledExponent:
        """From the entries of layers, and those between them; in double precision.

        :raises ValueError: if a coupling does not fit its layers.
        """
        sizes = [layer.incoming.values.shape[-2] for layer in layers]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        num = sum(sizes)
        incoming = zip(*(_sums(layer.incoming) for layer in layers), strict=True)
        outgoing = zip(*(_sums(layer.outgoing) for layer in layers), strict=True)
        A, B = (torch.cat(parts, -1) for parts in incoming)
        C, D = (torch.cat(parts, -1) for parts in outgoing)
        a = A.new_tensor(
            [
                layer.incoming.values.shape[-1] - layer.outgoing.values.shape[-1]
                for layer, size in zip(layers, sizes, strict=True)
                for _ in range(size)
            ]
        )
        alpha, beta = A.new_zeros(*A.shape, num), A.new_zeros(*A.shape, num)
        for rows, columns, entries in couplings:
            *_, height, breadth, width = entries.values.shape
            if (height, breadth) != (sizes[rows], sizes[columns]):
                raise ValueError(
                    f"entries of shape {height, breadth} do not lie between layers of "
                    f"{sizes[rows]} and {sizes[columns]} units"
                )
            row = slice(starts[rows], starts[rows] + height)
            column = slice(starts[columns], starts[columns] + breadth)
            squares, products = _sums(entries)
            alpha[..., row, column] += squares
            beta[..., row, column] += products
            a[row] += breadth * width
            a[column] -= height * width
        return cls(A, B, C, D, alpha, beta, a)

    def value(self, t: Tensor) -> Tensor:
        """``H(t)``, shape ``(*batch)``, for ``t`` of shape ``(*batch, n)``."""
        x = t.exp()
        y = x.reciprocal()
        ratios = x.unsqueeze(-1) * y.unsqueeze(-2)
        own = x * (self.B - 0.5 * self.A * x) + y * (self.D - 0.5 * self.C * y) + self.a * t
        between = ratios * (self.beta - 0.5 * self.alpha * ratios)
        return own.sum(-1) + between.sum((-2, -1))

    def slope(self, t: Tensor) -> Tensor:
        """``H'(t)``, shape ``(*batch, n)``."""
        x = t.exp()
        y = x.reciprocal()
        ratios = x.unsqueeze(-1) * y.unsqueeze(-2)
        own = x * (self.B - self.A * x) + y * (self.C * y - self.D) + self.a
        between = ratios * (self.beta - self.alpha * ratios)
        return own + between.sum(-1) - between.sum(-2)

    def curvature(self, t: Tensor) -> Tensor:
        """``-H''(t)``, shape ``(*batch, n, n)``."""
        x = t.exp()
        y = x.reciprocal()
        ratios = x.unsqueeze(-1) * y.unsqueeze(-2)
        own = x * (2 * self.A * x - self.B) + y * (2 * self.C * y - self.D)
        between = ratios * (2 * self.alpha * ratios - self.beta)
        diagonal = own + between.sum(-1) + between.sum(-2)
        return torch.diag_embed(diagonal) - between - between.mT

    def center(self) -> CoupledExponent:
        """Without ``B``, ``D`` and ``beta``: concave."""
        zero, none = torch.zeros_like(self.A), torch.zeros_like(self.alpha)
        return replace(self, B=zero, D=zero, beta=none)

    def detach(self) -> CoupledExponent:
        """Without graph."""
        return CoupledExponent(*(getattr(self, field.name).detach() for field in fields(self)))


def coupled_log_mass(exponent: CoupledExponent) -> Tensor:
    """``log int exp(H(t) - H(0)) dt`` by Laplace's method, to train on.

    Exact where the integrand is Gaussian. A unit off, of which ``a`` more entries come in than go
    out, adds an error of about ``1 / (6 a)`` nats, alike under guide and prior. Differentiable
    once, in all coefficients, the mode's motion included.

    :param exponent: that of the guide's factors or of the prior.
    :returns: shape ``(*batch)``, in nats.
    :raises ValueError: where there is no mode.
    """
    mode = find_coupled_mode(exponent.detach())
    factor = _factor(exponent.detach().curvature(mode))
    # A Newton step from the mode moves as the mode does when the coefficients change.
    step = torch.cholesky_solve(exponent.slope(mode).unsqueeze(-1), factor).squeeze(-1)
    mode = mode + step
    log_volume = torch.linalg.cholesky(exponent.curvature(mode)).diagonal(dim1=-2, dim2=-1).log()
    origin = torch.zeros_like(mode)
    gaussian = 0.5 * math.log(2 * math.pi) - log_volume
    log_integral: Tensor = exponent.value(mode) + gaussian.sum(-1)
    return log_integral - exponent.value(origin)


@torch.no_grad()
def find_coupled_mode(exponent: CoupledExponent) -> Tensor:
    """The mode of ``H`` that Newton's method reaches from that of the centered exponent.

    It moves with the orbit: a function of the orbit and of ``f`` alone.

    :returns: shape ``(*batch, n)``.
    :raises ValueError: where there is none.
    """
    centered = exponent.center()
    return _climb(exponent, _climb(centered, _balance(centered)))


@torch.no_grad()
def sampled_coupled_log_mass(
    exponent: CoupledExponent, num_samples: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Bounds of ``log int exp(H(t) - H(0)) dt`` that hold on average over draws.

    :param exponent: that of the guide's factors, or of the prior.
    :param num_samples: draws of the proposal, a mixture of Gaussians around the mode.
    :param generator: source of randomness; the global one if None.
    :returns: a lower bound, whoever drew ``w``, and an upper bound, for ``w`` drawn from ``f``;
        shapes ``(*batch)``, in nats.
    :raises ValueError: where there is no mode.
    """
    proposal = _Proposal.of(exponent)
    points = proposal.sample(num_samples, generator)
    here = exponent.value(torch.zeros_like(proposal.mode))
    weights = exponent.value(points) - proposal.log_density(points)
    lower = weights.logsumexp(0) - math.log(num_samples)
    own = here - proposal.log_density(torch.zeros_like(points[:1]))
    upper = torch.cat([weights, own]).logsumexp(0) - math.log(num_samples + 1)
    return lower - here, upper - here


@dataclass(frozen=True, eq=False)
class _Proposal:
    """A mixture of Gaussians around the mode, of the curvature there and of wider ones.

    Attributes:
        mode: shape ``(*batch, n)``.
        factor: of the curvature, by Cholesky, shape ``(*batch, n, n)``.
    """

    mode: Tensor
    factor: Tensor

    @classmethod
    def of(cls, exponent: CoupledExponent) -> _Proposal:
        mode = find_coupled_mode(exponent)
        return cls(mode, _factor(exponent.curvature(mode)))

    def sample(self, num: int, generator: torch.Generator | None) -> Tensor:
        """Shape ``(num, *batch, n)``."""
        shape, device = (num, *self.mode.shape), self.mode.device
        noise = torch.randn(shape, dtype=self.mode.dtype, device=device, generator=generator)
        component = torch.randint(len(_WIDTHS), shape[:-1], device=device, generator=generator)
        noise *= noise.new_tensor(_WIDTHS)[component].unsqueeze(-1)
        solved = torch.linalg.solve_triangular(self.factor.mT, noise.unsqueeze(-1), upper=True)
        return torch.add(self.mode, solved.squeeze(-1))

    def log_density(self, points: Tensor) -> Tensor:
        """At points of shape ``(k, *batch, n)``."""
        distance = (self.factor.mT @ (points - self.mode).unsqueeze(-1)).square().sum((-2, -1))
        num = self.mode.shape[-1]
        log_volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        terms = [-0.5 * distance / width**2 - num * math.log(width) for width in _WIDTHS]
        mixture = torch.stack(terms).logsumexp(0) - math.log(len(_WIDTHS))
        return mixture + log_volume - 0.5 * num * math.log(2 * math.pi)


def _balance(exponent: CoupledExponent) -> Tensor:
    """Near the mode of a centered exponent: the modes of all units given the others, by turns."""
    t = torch.zeros_like(exponent.A)
    for _ in range(_SWEEPS):
        x = t.exp().unsqueeze(-1)
        A = exponent.A + (exponent.alpha @ x.reciprocal().square()).squeeze(-1)
        C = exponent.C + (exponent.alpha.mT @ x.square()).squeeze(-1)
        larger = 0.5 * (torch.hypot(exponent.a, 2 * A.sqrt() * C.sqrt()) + exponent.a.abs())
        root = torch.where(exponent.a >= 0, (larger / A).log(), (C / larger).log())
        # Halfway, for neighbours move too.
        t = 0.5 * (t + 0.5 * root)
    return t


def _climb(exponent: CoupledExponent, t: Tensor) -> Tensor:
    """Newton's method with steps halved until they climb."""
    value = exponent.value(t)
    for _ in range(_NEWTON_STEPS):
        slope = exponent.slope(t)
        step = _ascent(exponent, t, slope)
        gain = (slope * step).sum(-1)
        if bool((gain < _CONVERGED * (1 + value.abs())).all()):
            return t
        size = torch.ones_like(value)
        for _ in range(_HALVINGS):
            moved = t + size.unsqueeze(-1) * step
            new_value = exponent.value(moved)
            short = ~(new_value >= value + 0.1 * size * gain - _CONVERGED * (1 + value.abs()))
            if not bool(short.any()):
                break
            size = torch.where(short, 0.5 * size, size)
        t, value = moved, new_value
    raise ValueError(_NO_MODE)


def _ascent(exponent: CoupledExponent, t: Tensor, slope: Tensor) -> Tensor:
    """Newton's step, by the centered exponent's curvature where the true one is not positive."""
    factor, failed = torch.linalg.cholesky_ex(exponent.curvature(t))
    if bool(failed.any()):
        safe = _factor(exponent.center().curvature(t))
        factor = torch.where((failed > 0)[..., None, None], safe, factor)
    return torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)


def _factor(curvature: Tensor) -> Tensor:
    """Lower triangular, by Cholesky."""
    factor, failed = torch.linalg.cholesky_ex(curvature)
    if bool(failed.any()):
        raise ValueError(_NO_MODE)
    return torch.as_tensor(factor)


def _sums(entries: UnitEntries) -> tuple[Tensor, Tensor]:
    values, locs, scales = (kind.double() for kind in entries)
    relative = values / scales
    return relative.square().sum(-1), (relative * locs / scales).sum(-1)
