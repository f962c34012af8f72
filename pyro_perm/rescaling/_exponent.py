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

from pyro_perm.rescaling._arrays import Array, as_array, both, empty, namespace, positions

_TINY = torch.finfo(torch.float64).tiny


class Exponent(NamedTuple):
    """Coefficients of ``h`` for ``n`` pairs of a factor and a unit.

    Attributes:
        squares: ``A`` and ``C``, shape ``(2, n)``.
        crosses: ``B`` and ``D``, likewise.
        a: common to all.
    """

    squares: Array
    crosses: Array
    a: float

    @classmethod
    def of(cls, A: Tensor, B: Tensor, C: Tensor, D: Tensor, a: float) -> Exponent:
        """From coefficients of any shapes that broadcast, flattened, in double precision."""
        A, B, C, D = (x.double().flatten() for x in torch.broadcast_tensors(A, B, C, D))
        return cls(as_array(torch.stack([A, C])), as_array(torch.stack([B, D])), float(a))

    def __len__(self) -> int:
        return int(self.squares.shape[1])

    def balance(self) -> tuple[Exponent, Array]:
        """The exponent moved to where ``A - C = a``, and that origin, shape ``(n,)``."""
        xp = namespace(self.squares)
        roots = xp.sqrt(self.squares)
        mean = roots[0] * roots[1]
        larger = mean
        if self.a:
            larger = 0.5 * (xp.sqrt(4 * mean * mean + self.a**2) + abs(self.a))
        smaller = mean * (mean / larger)
        incoming = self.a >= 0
        origin = xp.log(larger / self.squares[0 if incoming else 1])
        origin *= 0.5 if incoming else -0.5
        squares = both(larger, smaller) if incoming else both(smaller, larger)
        return Exponent(squares, self.crosses * powers(origin), self.a), origin

    def bracket(self) -> Array:
        """The modes of the incoming and the outgoing part of a balanced exponent, ``(2, n)``."""
        xp = namespace(self.squares)
        ratio = self.crosses / (2 * xp.clip(self.squares, _TINY, None))
        size = xp.abs(ratio)
        # Quicker than asinh.
        asinh = xp.copysign(xp.log(size + xp.sqrt(size * size + 1)), ratio)
        asinh[1] *= -1
        return asinh

    def move(self, origin: Array) -> Exponent:
        """The exponent with its origin moved, without the constant ``a * origin``."""
        x = powers(origin)
        squares = self.squares * x
        squares *= x
        x *= self.crosses
        return Exponent(squares, x, self.a)

    def take(self, index: Array) -> Exponent:
        """Those of some pairs."""
        return Exponent(self.squares[:, index], self.crosses[:, index], self.a)

    def chunks(self, size: int) -> Iterator[Exponent]:
        """All pairs, some at a time."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def join(self, other: Exponent) -> Exponent:
        """These pairs, then the others."""
        xp = namespace(self.squares)
        squares = xp.concatenate([self.squares, other.squares], 1)
        return Exponent(squares, xp.concatenate([self.crosses, other.crosses], 1), self.a)

    def value(self) -> Array:
        """``h(0)``."""
        terms = self.crosses - 0.5 * self.squares
        return terms[0] + terms[1]

    def slope(self) -> Array:
        """``h'(0)``."""
        terms = self.crosses - self.squares
        return terms[0] - terms[1] + self.a

    def curvature(self) -> Array:
        """``-h''(0)``."""
        terms = 2 * self.squares - self.crosses
        return terms[0] + terms[1]

    def derivatives(self, t: Array) -> tuple[Array, Array, Array]:
        """``h'(t)``, ``-h''(t)``, and ``A e^{2t} + C e^{-2t}``, shapes of ``t``.

        :param t: shape ``(..., n)``.
        """
        x = powers(t)
        squares = align(self.squares, t) * x
        squares *= x
        x *= align(self.crosses, t)
        x -= squares
        size = squares[0] + squares[1]
        return x[0] - x[1] + self.a, size - x[0] - x[1], size

    def rise(self, t: Array) -> Array:
        """``h(t) - h(0)``, accurate however sharp the integrand is.

        :param t: shape ``(..., n)``.
        """
        xp = namespace(t)
        rise = self.rise_at(both(xp.expm1(t), xp.expm1(-t)))
        rise += self.a * t
        return rise

    def rise_at(self, z: Array) -> Array:
        """``h(t) - h(0) - a t`` for ``z = e^t - 1`` and ``e^{-t} - 1``, shape ``(2, ..., n)``."""
        terms = align(-0.5 * self.squares, z[0]) * z
        terms += align(self.crosses - self.squares, z[0])
        terms *= z
        return terms[0] + terms[1]

    def require_integrals(self, results: Array) -> None:
        """Refuse pairs whose integrals are not finite.

        :param results: what depends on each pair's integral, shape ``(n,)``.
        :raises ValueError: with the reason.
        """
        bad = ~namespace(results).isfinite(results)
        if bool(bad.any()):
            where = int(positions(bad)[0])
            A, C = map(float, self.squares[:, where])
            B, D = map(float, self.crosses[:, where])
            pair = f"A = {A:.3g}, B = {B:.3g}, C = {C:.3g}, D = {D:.3g}, a = {self.a:g}"
            raise ValueError(f"{_reason(A, B, C, D, self.a)}: {pair}")


def powers(t: Array) -> Array:
    """``e^t`` and ``e^{-t}``: by what rescaling multiplies incoming and outgoing entries."""
    xp, x = namespace(t), empty((2, *t.shape), t)
    xp.exp(t, out=x[0])
    xp.reciprocal(x[0], out=x[1])
    return x


def align(part: Array, t: Array) -> Array:
    """Coefficients of shape ``(2, n)`` beside points of shape ``(..., n)`` for both ends."""
    return part if t.ndim == 1 else part.reshape(2, *(1,) * (t.ndim - 1), -1)


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
