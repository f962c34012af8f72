"""The auxiliary distributions of the element that a symmetrized guide draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_perm.symmetry.actions.sign import Sign
from pyro_perm.symmetry.actions.unit_action import UnitAction
from pyro_perm.symmetry.elements import (
    AnyElement,
    Element,
    flip,
    sample_permutation,
    shortest,
)
from pyro_perm.symmetry.factor import Factor

PERMUTATION = "permutation"


class _Uniform(TorchDistribution):
    """What happens to each of ``size`` units, with log-density zero.

    The symmetrized density averages over it, so the site that holds it must not contribute to the
    density of a trace. It counts as reparametrized: no parameter moves it.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, size: int, batch_shape: Sequence[int]) -> None:
        super().__init__(torch.Size(batch_shape), torch.Size([size]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, shape ``(*batch)``."""
        return torch.zeros(value.shape[:-1], device=value.device)


class UniformPermutation(_Uniform):
    """A uniformly drawn permutation of ``size`` units, with log-density zero.

    :param size: number of units ``n``; the event shape is ``(n,)``.
    :param batch_shape: shape of the particles' batch.
    :param signed: whether units flip their signs too; ``~j`` stands for minus unit ``j``.
    :param permutes: whether units take each other's places.
    :param device: where to draw.
    """

    def __init__(
        self,
        size: int,
        batch_shape: Sequence[int] = (),
        *,
        signed: bool = False,
        permutes: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.signed, self.permutes, self.device = signed, permutes, device
        super().__init__(size, batch_shape)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Units, and minus units if there are signs."""
        size = self.event_shape[0]
        return constraints.independent(
            constraints.integer_interval(-size if self.signed else 0, size - 1), 1
        )

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UniformPermutation:
        """The same distribution with another batch shape."""
        return UniformPermutation(
            self.event_shape[0],
            batch_shape,
            signed=self.signed,
            permutes=self.permutes,
            device=self.device,
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw permutations, shape ``(*sample_shape, *batch_shape, n)``."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        if self.permutes:
            permutation = sample_permutation(shape, device=self.device)
        else:
            permutation = torch.arange(shape[-1], device=self.device).expand(shape)
        if not self.signed:
            return permutation
        return flip(permutation, Sign().sample(shape, device=self.device))


class UniformAction(_Uniform):
    """What an action does to each of ``size`` units, uniformly drawn, with log-density zero.

    :param action: the action on each unit.
    :param size: number of units ``n``; the event shape is ``(n,)``.
    :param batch_shape: shape of the particles' batch.
    :param device: where to draw.
    """

    def __init__(
        self,
        action: UnitAction,
        size: int,
        batch_shape: Sequence[int] = (),
        *,
        device: torch.device | None = None,
    ) -> None:
        self.action, self.device = action, device
        super().__init__(size, batch_shape)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Elements of the action's group."""
        return constraints.independent(self.action.support, 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UniformAction:
        """The same distribution with another batch shape."""
        return UniformAction(self.action, self.event_shape[0], batch_shape, device=self.device)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw elements, shape ``(*sample_shape, *batch_shape, n)``."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        return self.action.sample(shape, device=self.device)


def uniform_parts(factor: Factor, device: torch.device | None = None) -> dict[str, Any]:
    """Part of an element of a group -> the distribution that it is drawn from.

    Without scales, which nothing draws uniformly.
    """
    signed = any(action.is_written_as_sign for action in factor.actions)
    permutation = UniformPermutation(
        factor.size, signed=signed, permutes=factor.permutes, device=device
    )
    others = {
        action.name: UniformAction(action, factor.size, device=device)
        for action in factor.actions
        if not action.is_written_as_sign and action.is_compact
    }
    return {PERMUTATION: permutation, **others}


def join_parts(factor: Factor, parts: Mapping[str, Tensor]) -> AnyElement:
    """The element with these parts, a bare permutation if there is no other."""
    element = Element(parts[PERMUTATION])
    for action in factor.actions:
        if action.name in parts:
            element = action.with_part(element, parts[action.name])
    return shortest(element)
