r"""Normalizing flows: Gaussian vectors pushed through invertible transforms.

The density of ``y = T(x)`` is ``log q(y) = log N(T^{-1}(y)) - log |det dT/dx|``. At permuted values
it takes the inverse of every transform, since these have not computed ``y`` from any ``x``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Independent,
    Normal,
    Transform,
    TransformedDistribution,
)

from pyro_perm.density.gaussians import drop_expanded

_NUM_POINTS = 64


@dataclass(frozen=True)
class Flow:
    """The distribution of a vector that a transform computes from independent Normals.

    Attributes:
        base: of the entries of the vector that is transformed, without a batch.
        transform: what is done to it.
    """

    base: Normal
    transform: ComposeTransform

    @classmethod
    def of(cls, distribution: TransformedDistribution, base: Normal) -> Flow:
        """The flow of a distribution, whose base has independent entries."""
        loc, scale = (drop_expanded(tensor, 1) for tensor in (base.loc, base.scale))
        transform = ComposeTransform(list(distribution.transforms))
        return cls(Normal(loc, scale, validate_args=False), transform)

    def log_ratio(self, moved: Tensor, vector: Tensor) -> Tensor:
        """``log q(moved) - log q(vector)``, in the precision of the transform.

        :param moved: shape ``(num, *batch, size)``.
        :param vector: shape ``(*batch, size)``.
        :returns: shape ``(num, *batch)``, in nats and double precision.
        """
        distribution = TransformedDistribution(
            Independent(self.base, 1), [self.transform], validate_args=False
        )
        both = torch.cat([moved, vector.unsqueeze(0)])
        log_prob: Tensor = distribution.log_prob(both.to(self.base.loc.dtype)).double()
        return log_prob[:-1] - log_prob[-1]

    @torch.no_grad()
    def moments(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the entries, over points that are always the same.

        They tell which permutations to propose, which may depend on the parameters alone.
        """
        loc, scale = self.base.loc, self.base.scale
        source = torch.Generator(device="cpu").manual_seed(0)
        noise = torch.randn(_NUM_POINTS, len(loc), generator=source, dtype=loc.dtype, device="cpu")
        points = self.transform(loc + scale * noise.to(loc.device))
        return points.mean(0), points.std(0)

    @torch.no_grad()
    def without_inverse(self) -> Transform | None:
        """The last transform whose inverse is not known, or is none, if any.

        One that depends on the other vectors of a batch has none.
        """
        loc = self.base.loc
        steps = torch.arange(2.0 * len(loc), dtype=loc.dtype, device=loc.device)
        value = steps.cos().view(2, -1)
        for transform in reversed(_parts(self.transform)):
            try:
                before = transform.inv(value)
                # Of the same tensor, it would remember the result.
                again = transform(before.clone())
            except (KeyError, NotImplementedError):
                return transform
            if not torch.allclose(again, value, rtol=1e-2, atol=1e-2):
                return transform
            value = before
        return None


def _parts(transform: Transform) -> list[Transform]:
    if not isinstance(transform, ComposeTransform):
        return [transform]
    return [part for each in transform.parts for part in _parts(each)]
