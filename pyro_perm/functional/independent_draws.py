"""Reparametrized draws of a guide's sites, from their Normals and one vector of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyro_perm.density.base_guides.reader import Normals
from pyro_perm.functional.substitution import NeedsTraces
from pyro_perm.symmetry.binding import unwrapped

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Draw(NamedTuple):
    """A site's value in unconstrained space, and what it was drawn from.

    Attributes:
        loc: shape ``(*shape)``.
        scale: the same shape.
        noise: standard normal, shape ``(*batch, *shape)``.
        unconstrained: ``loc + scale * noise``.
    """

    loc: Tensor
    scale: Tensor
    noise: Tensor
    unconstrained: Tensor

    def log_prob(self) -> Tensor:
        """Log-density of each entry in unconstrained space, in nats."""
        return -0.5 * self.noise.square() - self.scale.log() - _HALF_LOG_TWO_PI


class IndependentDraws:
    """Draws all sites of a guide without running it.

    :param guide: the guide, which has run before.
    :param normals: what tells the Normals that it draws from.
    :raises NeedsTraces: if a site lies in a subsampled plate.
    """

    def __init__(self, guide: AutoGuide, normals: Callable[[], Normals]) -> None:
        self._normals = normals
        # From unconstrained space to the support; None where that is all reals.
        self._to_support = {name: _transform_of(node) for name, node in _latent_nodes(guide)}

    def draw(self, batch: Sequence[int] = ()) -> dict[str, Draw]:
        """Fresh draws of all sites, which one vector of noise is cut into.

        :param batch: shape of the draws' batch.
        """
        normals = self._normals()
        sizes = [loc.numel() for loc, _ in normals.values()]
        like = next(iter(normals.values()))[0]
        noise = torch.randn(*batch, sum(sizes), dtype=like.dtype, device=like.device)
        draws = {}
        parts = noise.split(sizes, -1)
        for (name, (loc, scale)), part in zip(normals.items(), parts, strict=True):
            shaped = part.view((*batch, *loc.shape))
            draws[name] = Draw(loc, scale, shaped, torch.addcmul(loc, scale, shaped))
        return draws

    def values(self, unconstrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values that a model sees.

        :param unconstrained: site -> value in unconstrained space.
        """
        return {
            name: value if transform is None else transform(value)
            for name, value in unconstrained.items()
            for transform in [self._to_support[name]]
        }

    def log_volume(self, name: str, value: Tensor, unconstrained: Tensor) -> Tensor | float:
        """``log |dw/du|`` of a site's value, in nats."""
        transform = self._to_support[name]
        if transform is None:
            return 0.0
        log_volume: Tensor = transform.log_abs_det_jacobian(unconstrained, value)
        return log_volume.sum()


def _latent_nodes(guide: AutoGuide) -> Iterator[tuple[str, Any]]:
    """The sites that a guide draws, as its prototype met them.

    :raises NeedsTraces: if one lies in a subsampled plate.
    """
    prototype: Any = guide.prototype_trace
    for name, node in prototype.iter_stochastic_nodes():
        for frame in node["cond_indep_stack"]:
            if frame.vectorized and frame.full_size not in (None, frame.size):
                raise NeedsTraces(
                    f"site '{name}' lies in the subsampled plate '{frame.name}', of which each "
                    "step draws another part"
                )
        yield name, node


def _transform_of(node: Any) -> Transform | None:
    support = node["fn"].support
    is_real = unwrapped(support) in (constraints.real, constraints.real_vector)
    return None if is_real else biject_to(support)
