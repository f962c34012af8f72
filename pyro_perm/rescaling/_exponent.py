r"""The log of the integrand along a unit's orbit.

.. math:: h(t) = -\tfrac12 (A e^{2t} - 2 B e^t + C e^{-2t} - 2 D e^{-t}) + a t .

Moving the origin multiplies the coefficients by powers of :math:`e^{t_0}` and adds the constant
:math:`a t_0`, so all that is needed of ``h`` at a point is needed at zero of a moved exponent.

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


class Exponent(NamedTuple):
    """Coefficients of ``h``, shapes ``(n,)``; ``a`` is common to all."""

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    a: float

    @classmethod
    def of(cls, A: Tensor, B: Tensor, C: Tensor, D: Tensor, a: float) -> Exponent:
        """From coefficients of any shapes that broadcast, flattened, in double precision."""
        A, B, C, D = (x.double().reshape(-1) for x in torch.broadcast_tensors(A, B, C, D))
        return cls(A, B, C, D, float(a))

    def balanced(self) -> tuple[Exponent, Tensor]:
        """The exponent moved to where ``A - C = a``, and that origin, shape ``(n,)``."""
        mean = self.A.sqrt() * self.C.sqrt()
        larger = torch.hypot(2 * mean, mean.new_tensor(self.a)).add_(abs(self.a)).mul_(0.5)
        smaller = mean * (mean / larger)
        if self.a >= 0:
            A, C, origin = larger, smaller, (larger / self.A).log_().mul_(0.5)
        else:
            A, C, origin = smaller, larger, (self.C / larger).log_().mul_(0.5)
        x = origin.exp()
        return Exponent(A, self.B * x, C, self.D / x, self.a), origin

    def bracket(self) -> tuple[Tensor, Tensor]:
        """The modes of the incoming and the outgoing part of a balanced exponent."""
        return _half_asinh(self.B, self.A), _half_asinh(self.D, self.C).neg_()

    def moved(self, origin: Tensor) -> Exponent:
        """The exponent with its origin moved, without the constant ``a * origin``."""
        x = origin.exp()
        y = x.reciprocal()
        return Exponent((self.A * x).mul_(x), self.B * x, (self.C * y).mul_(y), self.D * y, self.a)

    def take(self, index: Tensor) -> Exponent:
        """Those of some pairs."""
        return Exponent(self.A[index], self.B[index], self.C[index], self.D[index], self.a)

    def chunks(self, size: int) -> Iterator[Exponent]:
        """All pairs, some at a time."""
        for A, B, C, D in zip(*(x.split(size) for x in self[:4]), strict=True):
            yield Exponent(A, B, C, D, self.a)

    def joined(self, other: Exponent) -> Exponent:
        """These pairs, then the others."""
        A, B, C, D = map(torch.cat, zip(self[:4], other[:4], strict=True))
        return Exponent(A, B, C, D, self.a)

    def value(self) -> Tensor:
        """``h(0)``."""
        return (self.B + self.D).sub_(self.A + self.C, alpha=0.5)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``h'(t)``, ``-h''(t)``, and ``A e^{2t} + C e^{-2t}``."""
        x = t.exp()
        y = x.reciprocal()
        Ax, Cy = self.A * x, self.C * y
        incoming, outgoing = (self.B - Ax).mul_(x), (Cy - self.D).mul_(y)
        size = Ax.mul_(x).addcmul_(Cy, y)
        return incoming + outgoing + self.a, size + outgoing - incoming, size

    def curvature(self) -> Tensor:
        """``-h''(0)``."""
        return (self.A + self.C).mul_(2).sub_(self.B).sub_(self.D)

    def rise(self, t: Tensor) -> Tensor:
        """``h(t) - h(0)``, accurate however sharp the integrand is."""
        return self.rise_at(torch.expm1(t), torch.expm1(-t)).add_(t, alpha=self.a)

    def rise_at(self, z: Tensor, w: Tensor) -> Tensor:
        """``h(t) - h(0) - a t`` for ``z = e^t - 1`` and ``w = e^{-t} - 1``."""
        rise = torch.addcmul(self.B - self.A, z, self.A, value=-0.5).mul_(z)
        return rise.add_(torch.addcmul(self.D - self.C, w, self.C, value=-0.5).mul_(w))

    def require_integrals(self, results: Tensor) -> None:
        """Refuse pairs whose integrals are not finite.

        :param results: what depends on each pair's integral, shape ``(n,)``.
        :raises ValueError: with the reason.
        """
        bad = ~results.isfinite()
        if bool(bad.any()):
            where = int(bad.nonzero()[0])
            A, B, C, D = (float(part[where]) for part in self[:4])
            pair = f"A = {A:.3g}, B = {B:.3g}, C = {C:.3g}, D = {D:.3g}, a = {self.a:g}"
            raise ValueError(f"{_reason(A, B, C, D, self.a)}: {pair}")


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


def _half_asinh(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``asinh(numerator / (2 denominator))``, zero where both vanish."""
    ratio = numerator / denominator.clamp_min(torch.finfo(numerator.dtype).tiny).mul_(2)
    size = ratio.abs()
    # Quicker than torch.asinh.
    return (size * size).add_(1).sqrt_().add_(size).log_().copysign_(ratio)
