"""Reparametrized draws of an ``AutoNormal``, from its parameters and one vector of noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyro_perm.functional.substitution import NeedsTraces
from pyro_perm.program._pyro_internals import UnconstrainedParameter, announced_loc_and_scale
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


class _Site(NamedTuple):
    """Where a site's parameters are, and what makes its value of an unconstrained one.

    Attributes:
        loc: what its loc is made of.
        scale: what its scale is made of.
        to_support: from unconstrained space to the support; None where that is all reals.
    """

    loc: UnconstrainedParameter
    scale: UnconstrainedParameter
    to_support: Transform | None


class IndependentDraws:
    """Draws all sites of an ``AutoNormal`` without running it.

    :param guide: the guide, which has run before.
    :raises NeedsTraces: if a site lies in a subsampled plate.
    """

    def __init__(self, guide: AutoNormal) -> None:
        self._guide = guide
        self._sites = {name: _site(guide, name, node) for name, node in _latent_nodes(guide)}

    def draw(self, batch: Sequence[int] = ()) -> dict[str, Draw]:
        """Fresh draws of all sites, which one vector of noise is cut into.

        :param batch: shape of the draws' batch.
        """
        parameters = [*self._parameters()]
        sizes = [loc.numel() for loc, _ in parameters]
        like = parameters[0][0]
        noise = torch.randn(*batch, sum(sizes), dtype=like.dtype, device=like.device)
        draws = {}
        parts = noise.split(sizes, -1)
        for name, (loc, scale), part in zip(self._sites, parameters, parts, strict=True):
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
            for transform in [self._sites[name].to_support]
        }

    def log_volume(self, name: str, value: Tensor, unconstrained: Tensor) -> Tensor | float:
        """``log |dw/du|`` of a site's value, in nats."""
        transform = self._sites[name].to_support
        if transform is None:
            return 0.0
        log_volume: Tensor = transform.log_abs_det_jacobian(unconstrained, value)
        return log_volume.sum()

    def _parameters(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Loc and scale of each site."""
        if am_i_wrapped():  # SVI learns of the parameters by their statements.
            yield from announced_loc_and_scale(self._guide, self._sites)
        else:
            for site in self._sites.values():
                yield site.loc.constrained(), site.scale.constrained()


def _latent_nodes(guide: AutoNormal) -> Iterator[tuple[str, Any]]:
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


def _site(guide: AutoNormal, name: str, node: Any) -> _Site:
    support = node["fn"].support
    is_real = unwrapped(support) in (constraints.real, constraints.real_vector)
    return _Site(
        UnconstrainedParameter.of(guide.locs, name),
        UnconstrainedParameter.of(guide.scales, name),
        None if is_real else biject_to(support),
    )
