"""What every estimator of ``log q^G(w)`` offers and declares, and the table of those there are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_perm.density.density import Density


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

    A new estimator is one new file with one method, :meth:`log_ratio`, and what it declares.

    Attributes:
        is_lower_bound: whether the expectation of ``-log_ratio`` bounds ``I`` from below.
        is_upper_bound: the same from above. Who bounds both sides at once is exact.
        is_deterministic: whether it draws no random numbers, so that none are missed where an
            estimate that nobody asks for is spared.
        method: what certificates call it; the name of the class if empty.
    """

    is_lower_bound: ClassVar[bool] = False
    is_upper_bound: ClassVar[bool] = False
    is_deterministic: ClassVar[bool] = False
    method: ClassVar[str] = ""

    @abstractmethod
    def log_ratio(self, density: Density) -> Tensor:
        """Estimate ``log q^G(w) - log q(w)``.

        :param density: the traced base distributions, the sampled ``w`` and the symmetry.
        :returns: shape ``density.batch_shape``, in nats and double precision.
        :raises ValueError: if it does not serve this symmetry; says why.
        :raises TypeError: if it does not serve this kind of base guide.
        """

    def serves(self, density: Density) -> str | None:
        """None if it serves this symmetry and this kind of base guide, else why not, and the fix.

        The values of ``w`` have no say. To be read after the estimator's name, as in "Exact() would
        enumerate ...". What overrides this begins :meth:`log_ratio` with
        :func:`~pyro_perm.estimators.estimator.require_served`.
        """
        return None

    def cost(self, density: Density) -> float:
        """Multiplications for a draw of ``w``, roughly: certificates try what is cheap first.

        :returns: a positive number; infinite if unknown.
        """
        return math.inf

    @classmethod
    def candidates(cls, density: Density) -> Sequence[Estimator]:
        """Settings with which it competes in certificates: those that it deems worth trying.

        They must not depend on the values of ``w``, or the certificate would be void.
        """
        return ()

    def bounds(self, density: Density) -> Bounds:
        """Integrands that bound the mutual information."""
        information = -self.log_ratio(density)
        return Bounds(
            information if self.is_lower_bound else None,
            information if self.is_upper_bound else None,
        )

    def for_one_guide(self) -> Estimator:
        """What a guide or a loss keeps for itself: a copy, where it remembers a guide's units."""
        return self


_Kind = TypeVar("_Kind", bound=type[Estimator])
_registered: list[type[Estimator]] = []


def register_estimator(kind: _Kind) -> _Kind:
    """Class decorator: its :meth:`~pyro_perm.Estimator.candidates` compete in certificates."""
    _registered.append(kind)
    return kind


def registered_estimators() -> tuple[type[Estimator], ...]:
    """All estimators that there are."""
    return tuple(_registered)


def require_served(estimator: Estimator, density: Density) -> None:
    """Refuse what an estimator does not serve.

    :raises ValueError: with the reason that it gives.
    :raises TypeError: the same, where the base guide draws its sites jointly.
    """
    reason = estimator.serves(density)
    if reason is not None:
        error = ValueError if density.factorizes else TypeError
        raise error(f"{estimator} {reason}")


def joint_draws(density: Density) -> str | None:
    """Why estimators by permanents do not serve base guides whose sites depend on each other."""
    if density.factorizes:
        return None
    return (
        "takes the sites of the base guide for independent, but it draws them jointly: give "
        "estimator=ImportanceSampled(num_permutations=32), or wrap an AutoNormal"
    )


def unit_actions(density: Density) -> str | None:
    """Why proposals over permutations do not serve groups that act on each unit by itself."""
    for factor in density.symmetry.factors:
        for action in factor.actions:
            return (
                f"draws permutations alone, but group '{factor.name}' {action.deed} its units: "
                "evaluate with SampledChainRule(num_permutations=64), or leave out estimator="
            )
    return None


def refuse_gradient(estimator: Estimator, log_ratio: Tensor, density: Density) -> Tensor:
    """The same estimate, through which backpropagation raises an error rather than pass nothing.

    :param log_ratio: without gradient.
    """
    kinds = (density.values, density.locs, density.scales)
    tensors = [tensor for kind in kinds for tensor in kind.values()]
    message = f"{estimator} has no gradient: train with Bethe()"
    refusing: Tensor = _RefusedGradient.apply(message, log_ratio, *tensors)
    return refusing


class _RefusedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: str, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.message = message
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, ...]:
        raise ValueError(ctx.message)


def require_positive(name: str, value: int) -> None:
    """Refuse counts below one.

    :raises ValueError: naming the argument.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, but is {value!r}")
