r"""Layers whose outputs are drawn in place of their weights (Kingma et al. 2015).

With independent Normal weights, the outputs ``x @ w.T + b`` of a linear or convolutional layer are
Normal given the inputs, with mean ``x @ m.T + m_b`` and variance ``x^2 @ (s^2).T + s_b^2``. Drawing
these for each observation by itself has the same expectation of the log-likelihood, and a gradient
of less variance.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn import functional

from pyro_perm.density.gaussians import as_normal
from pyro_perm.program._torch_internals import EagerFunctionMode

_LAYERS: tuple[Callable[..., Tensor], ...] = (
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
)
_active: ContextVar[LocalLayers | None] = ContextVar("local_layers", default=None)


def local_layers() -> LocalLayers | None:
    """The context around the caller, if there is one."""
    return _active.get()


@dataclass
class _Drawn:
    """A weight that a guide drew.

    Attributes:
        value: what was drawn. While it is here, no other tensor lies where it does.
        loc: of the Normal that it was drawn from; ``scale`` likewise.
        is_used: whether a layer's outputs have been drawn by it.
    """

    value: Tensor
    loc: Tensor
    scale: Tensor
    is_used: bool = False


class LocalLayers(EagerFunctionMode):
    """Draws the outputs of linear and convolutional layers whose weights a guide draws.

    A weight is known by where its entries lie, which a guide and a model's sample statements pass
    on, and a permutation does not.

    Attributes:
        num_drawn: how many layers' outputs were drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[tuple[int, torch.Size], _Drawn] = {}
        self._reader = _GuideReader(self)
        self.num_drawn = 0

    def __enter__(self) -> LocalLayers:
        self._before = _active.set(self)
        self._reader.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reader.__exit__(*error)
        _active.reset(self._before)
        self._weights.clear()

    def add(self, value: Tensor, loc: Tensor, scale: Tensor) -> None:
        """Make a weight known."""
        self._weights[_place(value)] = _Drawn(value, loc, scale)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LAYERS and self._weights:
            return self._outputs(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _outputs(
        self,
        layer: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        drawn = self._weights.get(_place(weight))
        if drawn is None:
            return layer(input, weight, bias, *args, **kwargs)
        shift = None if bias is None else self._weights.get(_place(bias))
        for used in (drawn, shift):
            if used is not None:
                _require_first_use(used)
        loc = bias if shift is None else shift.loc
        noise = None if shift is None else shift.scale.square()
        mean = layer(input, drawn.loc, loc, *args, **kwargs)
        variance = layer(input.square(), drawn.scale.square(), noise, *args, **kwargs)
        self.num_drawn += 1
        # Where all inputs are zero, the root has no gradient, and needs none.
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return mean + scale * torch.randn_like(mean)


class _GuideReader(Messenger):
    """Tells of the Normals that sites are drawn from, not of the priors of what is passed on."""

    def __init__(self, layers: LocalLayers) -> None:
        super().__init__()
        self._layers = layers
        self._to_be_drawn: set[int] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if not (msg["done"] or msg["is_observed"]):
            self._to_be_drawn.add(id(msg))

    def _pyro_post_sample(self, msg: Any) -> None:
        if id(msg) not in self._to_be_drawn:
            return
        self._to_be_drawn.remove(id(msg))
        normal = as_normal(msg["fn"])
        if normal is not None:
            self._layers.add(msg["value"], normal.loc, normal.scale)


def _place(value: Tensor) -> tuple[int, torch.Size]:
    return value.data_ptr(), value.shape


def _require_first_use(drawn: _Drawn) -> None:
    """Refuse to draw by one weight twice, as if there were two.

    :raises ValueError: naming its shape.
    """
    if drawn.is_used:
        raise ValueError(
            f"a weight of shape {tuple(drawn.value.shape)} is used by two layers, or by one twice, "
            "whose outputs depend on each other through it: train without local reparametrization"
        )
    drawn.is_used = True
