"""What every estimator of ``log q^G(w)`` offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from pyro_perm.density.factorized import FactorizedDensity


class Bounds(NamedTuple):
    """Integrands whose expectations under ``w ~ q`` bound the mutual information ``I(g; w)``.

    Attributes:
        lower: shape ``(*batch)``, in nats, or None where the estimator has no lower bound.
        upper: the same from above.
    """

    lower: Tensor | None
    upper: Tensor | None


class Estimator(ABC):
    """Estimates ``log q^G(w) - log q(w)``, so that ``I(g; w) = E_q[log q(w) - log q^G(w)]``.

    A new estimator is one new file with one method, :meth:`log_ratio`; one whose expectation bounds
    ``I`` says so in ``is_lower_bound`` and ``is_upper_bound``.
    """

    is_lower_bound: ClassVar[bool] = False
    is_upper_bound: ClassVar[bool] = False

    @abstractmethod
    def log_ratio(self, density: FactorizedDensity) -> Tensor:
        """Estimate ``log q^G(w) - log q(w)``.

        :param density: the traced base distributions, the sampled ``w`` and the symmetry.
        :returns: shape ``density.batch_shape``, in nats and double precision.
        :raises ValueError: if the estimator cannot serve this symmetry.
        """

    def bounds(self, density: FactorizedDensity) -> Bounds:
        """Integrands that bound the mutual information."""
        information = -self.log_ratio(density)
        return Bounds(
            information if self.is_lower_bound else None,
            information if self.is_upper_bound else None,
        )

    def for_one_guide(self) -> Estimator:
        """What a guide or a loss keeps for itself: a copy, where it remembers a guide's units."""
        return self


def require_factorized(estimator: Estimator, density: FactorizedDensity) -> None:
    """Refuse base guides whose sites depend on each other.

    :raises TypeError: naming estimators that serve them.
    """
    if not density.factorizes:
        raise TypeError(
            f"{estimator} takes the sites of the base guide for independent, but it draws them "
            "jointly: give estimator=ImportanceSampled(num_permutations=32), or wrap an AutoNormal"
        )


def require_positive(name: str, value: int) -> None:
    """Refuse counts below one.

    :raises ValueError: naming the argument.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, but is {value!r}")
