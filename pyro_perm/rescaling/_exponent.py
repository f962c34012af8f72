r"""The log of the integrand along a unit's orbit.

.. math:: h(t) = -\tfrac12 (A e^{2t} - 2 B e^t + C e^{-2t} - 2 D e^{-t}) + a t .

It is the same for both ends of a unit but for the sign of ``t``, and so the coefficients are kept
in pairs: ``A, C`` and ``B, D``. Moving the origin multiplies them by powers of :math:`e^{\pm t_0}`
and adds the constant :math:`a t_0`, so all that is needed of ``h`` at a point is needed at zero of
a moved exponent.

There is one origin with ``A - C = a``: the mode of the integrand without ``B`` and ``D``. Relative
to it ``h`` is the sum of ``-(A e^{2t} - 2 B e^t) / 2 + A t`` and ``-(C e^{-2t} - 2 D e^{-t}) / 2 -
C t``, which have one mode each, at ``asinh(B / 2A)`` and ``-asinh(D / 2C)``. Every critical point
of ``h`` lies between these two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float64).tiny


class Exponent(NamedTuple):
    """Coefficients of ``h`` for ``n`` pairs of a factor and a unit.

    Attributes:
        squares: ``A`` and ``C``, shape ``(2, n)``.
        crosses: ``B`` and ``D``, likewise.
        a: common to all.
    """

    squares: Tensor
    crosses: Tensor
    a: float

    @classmethod
    def of(cls, A: Tensor, B: Tensor, C: Tensor, D: Tensor, a: float) -> Exponent:
        """From coefficients of any shapes that broadcast, flattened, in double precision."""
        A, B, C, D = (x.double().flatten() for x in torch.broadcast_tensors(A, B, C, D))
        return cls(torch.stack([A, C]), torch.stack([B, D]), float(a))

    def balanced(self) -> tuple[Exponent, Tensor]:
        """The exponent moved to where ``A - C = a``, and that origin, shape ``(n,)``."""
        mean = self.squares.sqrt().prod(0)
        larger = torch.hypot(2 * mean, mean.new_tensor(self.a)).add_(abs(self.a)).mul_(0.5)
        smaller = mean * (mean / larger)
        ends = [larger, smaller] if self.a >= 0 else [smaller, larger]
        dominant = 0 if self.a >= 0 else 1
        origin = (larger / self.squares[dominant]).log_().mul_(0.5 - dominant)
        return Exponent(torch.stack(ends), self.crosses * both_ends(origin).exp_(), self.a), origin

    def bracket(self) -> Tensor:
        """The modes of the incoming and the outgoing part of a balanced exponent, ``(2, n)``."""
        ratio = self.crosses / self.squares.clamp_min(_TINY).mul_(2)
        size = ratio.abs()
        # Quicker than torch.asinh.
        asinh = (size * size).add_(1).sqrt_().add_(size).log_().copysign_(ratio)
        asinh[1].neg_()
        return asinh

    def moved(self, origin: Tensor) -> Exponent:
        """The exponent with its origin moved, without the constant ``a * origin``."""
        x = both_ends(origin).exp_()
        return Exponent((self.squares * x).mul_(x), x.mul_(self.crosses), self.a)

    def take(self, index: Tensor) -> Exponent:
        """Those of some pairs."""
        return Exponent(self.squares[:, index], self.crosses[:, index], self.a)

    def chunks(self, size: int) -> Iterator[Exponent]:
        """All pairs, some at a time."""
        for squares, crosses in zip(
            self.squares.split(size, 1), self.crosses.split(size, 1), strict=True
        ):
            yield Exponent(squares, crosses, self.a)

    def joined(self, other: Exponent) -> Exponent:
        """These pairs, then the others."""
        squares = torch.cat([self.squares, other.squares], 1)
        return Exponent(squares, torch.cat([self.crosses, other.crosses], 1), self.a)

    def value(self) -> Tensor:
        """``h(0)``."""
        value: Tensor = torch.add(self.crosses, self.squares, alpha=-0.5).sum(0)
        return value

    def slope(self) -> Tensor:
        """``h'(0)``."""
        incoming, outgoing = self.crosses - self.squares
        return torch.sub(incoming, outgoing).add_(self.a)

    def curvature(self) -> Tensor:
        """``-h''(0)``."""
        return torch.sub(2 * self.squares, self.crosses).sum(0)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``h'(t)``, ``-h''(t)``, and ``A e^{2t} + C e^{-2t}``, shapes of ``t``.

        :param t: shape ``(..., n)``.
        """
        x = both_ends(t).exp_()
        squares = (align(self.squares, t) * x).mul_(x)
        incoming, outgoing = x.mul_(align(self.crosses, t)).sub_(squares)
        size = squares.sum(0)
        slope = incoming - outgoing
        return slope.add_(self.a), incoming.add_(outgoing).neg_().add_(size), size

    def rise(self, t: Tensor) -> Tensor:
        """``h(t) - h(0)``, accurate however sharp the integrand is.

        :param t: shape ``(..., n)``.
        """
        return self.rise_at(both_ends(t).expm1_()).add_(t, alpha=self.a)

    def rise_at(self, z: Tensor) -> Tensor:
        """``h(t) - h(0) - a t`` for ``z = e^t - 1`` and ``e^{-t} - 1``, shape ``(2, ..., n)``."""
        squares, differences = (
            align(part, z[0]) for part in (self.squares, self.crosses - self.squares)
        )
        return torch.addcmul(differences, z, squares, value=-0.5).mul_(z).sum(0)

    def require_integrals(self, results: Tensor) -> None:
        """Refuse pairs whose integrals are not finite.

        :param results: what depends on each pair's integral, shape ``(n,)``.
        :raises ValueError: with the reason.
        """
        bad = ~results.isfinite()
        if bool(bad.any()):
            where = int(bad.nonzero()[0])
            A, C = self.squares[:, where].tolist()
            B, D = self.crosses[:, where].tolist()
            pair = f"A = {A:.3g}, B = {B:.3g}, C = {C:.3g}, D = {D:.3g}, a = {self.a:g}"
            raise ValueError(f"{_reason(A, B, C, D, self.a)}: {pair}")


def both_ends(t: Tensor) -> Tensor:
    """``t`` and ``-t``, as it acts on incoming and outgoing entries."""
    return torch.stack([t, -t])


def align(part: Tensor, t: Tensor) -> Tensor:
    """Coefficients of shape ``(2, n)`` beside points of shape ``(..., n)`` for both ends."""
    return part if t.dim() == 1 else part.view(2, *(1,) * (t.dim() - 1), -1)


def _reason(A: float, B: float, C: float, D: float, a: float) -> str:
    """Why there is no integral."""
    if any(math.isnan(x) for x in (A, B, C, D)):
        return "the coefficients of a unit's orbit are not numbers"
    if A < 0 or C < 0:
        return "A and C are sums of squares, which cannot be negative"
    for square, surplus, ends in ((A, a, "incoming"), (C, -a, "outgoing")):
        if square == 0 and surplus >= 0:
            return (
                f"the integral over a unit's scales diverges, for its {ends} entries are all zero "
                "and not outnumbered by the others"
            )
    return "the integral over a unit's scales leaves the range of double precision"
