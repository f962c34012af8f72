"""The auxiliary distribution of the permutation that a symmetrized guide draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_perm.symmetry import elements


class UniformPermutation(TorchDistribution):
    """A uniformly drawn permutation of ``size`` units, with log-density zero.

    The symmetrized density averages over the permutation, so the site that holds it must not
    contribute to the density of a trace. It counts as reparametrized: no parameter moves it.

    :param size: number of units ``n``; the event shape is ``(n,)``.
    :param batch_shape: shape of the particles' batch.
    :param signed: whether units flip their signs too; ``~j`` stands for minus unit ``j``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, size: int, batch_shape: Sequence[int] = (), *, signed: bool = False) -> None:
        self.signed = signed
        super().__init__(torch.Size(batch_shape), torch.Size([size]), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Units, and minus units if there are signs."""
        size = self.event_shape[0]
        return constraints.independent(
            constraints.integer_interval(-size if self.signed else 0, size - 1), 1
        )

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> UniformPermutation:
        """The same distribution with another batch shape."""
        return UniformPermutation(self.event_shape[0], batch_shape, signed=self.signed)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw permutations, shape ``(*sample_shape, *batch_shape, n)``."""
        shape = (*sample_shape, *self.batch_shape)
        return elements.sample(shape, self.event_shape[0], signed=self.signed)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, shape ``(*batch)``."""
        return torch.zeros(value.shape[:-1], device=value.device)
