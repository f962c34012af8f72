"""How effect handlers weigh the log-density of a guide's sites: by scales and masks.

``log q^G(w)`` is no sum over sites, so it can be weighed only where all sites of a symmetry are
weighed alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

_FIX = (
    "log q^G is no sum over sites, so all sites of a symmetry must be weighed alike: put the "
    "handler around the whole guide, or symmetrize each part of an AutoGuideList by itself"
)


class SiteWeight(NamedTuple):
    """What multiplies the log-density of a site.

    Attributes:
        scale: a positive factor.
        mask: where the log-density counts; None counts it everywhere.
    """

    scale: float | Tensor
    mask: bool | Tensor | None

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """A context in which further sites are weighed likewise."""
        with ExitStack() as stack:
            if isinstance(self.scale, Tensor) or self.scale != 1.0:
                stack.enter_context(poutine.scale(scale=self.scale))
            if self.mask is not None:
                mask: Any = self.mask
                stack.enter_context(poutine.mask(mask=mask))
            yield

    def require_batched_as(self, batch_shape: torch.Size, site: str) -> None:
        """Refuse weights that differ between the entries of a draw.

        :param batch_shape: that of the particles, the model's plates being of size one.
        :param site: the site that they weigh.
        :raises ValueError: naming the site.
        """
        for name, weight in zip(self._fields, self, strict=True):
            if isinstance(weight, Tensor) and (
                torch.broadcast_shapes(weight.shape, batch_shape) != batch_shape
            ):
                raise ValueError(
                    f"the base guide's site '{site}' has a {name} of shape {tuple(weight.shape)}, "
                    f"which differs within a draw. {_FIX}"
                )


def common_weight(weights: Mapping[str, SiteWeight]) -> SiteWeight:
    """The weight that all sites have.

    :param weights: site -> its weight.
    :raises ValueError: if they have different ones; names two sites.
    """
    (first, expected), *others = weights.items()
    for site, weight in others:
        for name, one, other in zip(SiteWeight._fields, expected, weight, strict=True):
            if one is not other and not _equal(one, other):
                raise ValueError(
                    f"the base guide's site '{first}' has {name} {_describe(one)}, but its site "
                    f"'{site}' has {name} {_describe(other)}. {_FIX}"
                )
    return expected


def _equal(one: float | Tensor | None, other: float | Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return torch.equal(*map(torch.as_tensor, (one, other)))
    return one == other


def _describe(weight: float | Tensor | None) -> str:
    if isinstance(weight, Tensor) and weight.numel() > 1:
        return f"of shape {tuple(weight.shape)}"
    return repr(weight.item() if isinstance(weight, Tensor) else weight)
