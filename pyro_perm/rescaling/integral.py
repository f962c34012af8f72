r"""The integral over a unit's rescalings, of a factorized Gaussian.

A unit with incoming entries ``u`` and outgoing entries ``v`` is rescaled to ``(e^t u, e^{-t} v)``.
Under a factorized Gaussian with means ``m, n`` and scales ``s, r`` its density along this orbit,
times the Jacobian ``e^{a t}`` with ``a = dim u - dim v``, is

.. math:: f(e^t u, e^{-t} v)\, e^{a t} = f_0 \exp h(t), \qquad
   h(t) = -\tfrac12 (A e^{2t} - 2 B e^t + C e^{-2t} - 2 D e^{-t}) + a t,

.. math:: A = \sum u^2 / s^2, \quad B = \sum u m / s^2, \quad
          C = \sum v^2 / r^2, \quad D = \sum v n / r^2,

where ``f_0`` is the density of zero. Everything is computed relative to the mode of the integrand
without ``B`` and ``D``, so that no unit overflows however far it lies from its balanced
representative. The derivatives of ``log int e^h`` are means under the density proportional to
``e^h``: those of ``-e^{2t} / 2``, ``e^t``, ``-e^{-2t} / 2``, ``e^{-t}`` and ``t``.

With ``B = D = 0`` the integral is ``(C / A)^{a / 4} K_{a / 2}(sqrt(A C))``, and ``e^{2t}`` follows
the generalized inverse Gaussian distribution with parameters ``a / 2``, ``A`` and ``C``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_perm.rescaling._arrays import as_tensor
from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._once import refuse_second_derivatives
from pyro_perm.rescaling._quadrature import integrate

# In nats.
TOLERANCE = 1e-9
_TOLERANCE_OF_SINGLE_PRECISION = 1e-5


def tolerance_for(dtype: torch.dtype) -> float:
    """The error in nats that is harmless beside what entries of a unit lose to rounding."""
    return TOLERANCE if dtype == torch.float64 else _TOLERANCE_OF_SINGLE_PRECISION


class OrbitIntegral(NamedTuple):
    """Integrals along orbits, without gradient.

    Attributes:
        log_integral: ``log int exp h(t) dt`` in nats, shape ``(...)``.
        means: means of ``e^{2t}``, ``e^t``, ``e^{-2t}`` and ``e^{-t}``, shape ``(4, ...)``.
    """

    log_integral: Tensor
    means: Tensor

    def derivatives(self) -> Tensor:
        """Derivatives of the log-integral in ``A``, ``B``, ``C`` and ``D``, shape ``(4, ...)``."""
        factors = self.means.new_tensor([-0.5, 1.0, -0.5, 1.0])
        return self.means * factors.view(4, *(1,) * self.log_integral.dim())


@torch.no_grad()
def orbit_integral(
    A: Tensor, B: Tensor, C: Tensor, D: Tensor, a: float, *, tolerance: float = TOLERANCE
) -> OrbitIntegral:
    r"""``log int exp(-(A e^{2t} - 2 B e^t + C e^{-2t} - 2 D e^{-t}) / 2 + a t) dt``, and its means.

    By the trapezoidal rule around one mode or two, in double precision, with as many nodes as each
    integrand needs.

    >>> import torch
    >>> from pyro_perm.rescaling import orbit_integral
    >>> one, zero = torch.ones(()), torch.zeros(())
    >>> orbit_integral(one, zero, one, zero, 0.0, tolerance=1e-12).log_integral.exp()  # K_0(1)
    tensor(0.4210, dtype=torch.float64)

    :param A: not negative; zero only with ``B = 0`` and ``a < 0``. Shapes broadcast.
    :param B: any real number, as ``D``.
    :param C: not negative; zero only with ``D = 0`` and ``a > 0``.
    :param a: number of incoming minus number of outgoing entries.
    :param tolerance: accepted error of the log-integral in nats. Rounding adds about ``1e-16``
        times the largest of the terms of ``h`` at the mode.
    :raises ValueError: where an integral diverges or a coefficient is not a number, or if the
        tolerance is not between 0 and 0.1.
    """
    shape = torch.broadcast_shapes(A.shape, B.shape, C.shape, D.shape)
    log_integral, means = integrate(Exponent.of(A, B, C, D, a), tolerance)
    return OrbitIntegral(as_tensor(log_integral).view(shape), as_tensor(means).view(4, *shape))


def log_integral(
    A: Tensor, B: Tensor, C: Tensor, D: Tensor, a: float, *, tolerance: float = TOLERANCE
) -> Tensor:
    """As :func:`orbit_integral`, with the gradient in ``A``, ``B``, ``C`` and ``D``.

    The gradient is that of the exact integral, from the means over the nodes: there is no graph
    through them.

    :returns: shape of the coefficients, in nats and double precision.
    :raises ValueError: as :func:`orbit_integral`.
    :raises RuntimeError: when second derivatives are asked for.
    """
    result: Tensor = _LogIntegral.apply(*torch.broadcast_tensors(A, B, C, D), a, tolerance)
    return result


class _LogIntegral(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, A: Tensor, B: Tensor, C: Tensor, D: Tensor, a: float, tolerance: float
    ) -> Tensor:
        integral = orbit_integral(A, B, C, D, a, tolerance=tolerance)
        ctx.save_for_backward(integral.derivatives(), A, B, C, D)
        return integral.log_integral

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        derivatives, *inputs = ctx.saved_tensors
        with torch.no_grad():
            grads = (derivatives * grad_output).unbind()
        return *refuse_second_derivatives(grads, (grad_output, *inputs)), None, None
