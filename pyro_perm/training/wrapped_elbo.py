"""ELBOs that are other ELBOs, computed inside of a context: one recipe on top of another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
)
from torch import Tensor

from pyro_perm.compiled.graph_loss import python_loss

Program = Callable[..., Any]
_COMPILED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


class WrappedELBO(ELBO):
    """Another ELBO, inside of a context where it is trained.

    Without gradients, as for ``SVI.evaluate_loss``, it is the other ELBO.

    :param elbo: the other ELBO.
    :raises TypeError: if it is none, or a compiled one, which would see one context for ever.
    """

    def __init__(self, elbo: Any) -> None:
        if not isinstance(elbo, ELBO):
            raise TypeError(f"elbo must be an ELBO of Pyro's kind, but is a {type(elbo).__name__}")
        if isinstance(elbo, _COMPILED):
            raise TypeError(
                f"{type(elbo).__name__} is compiled at its first step, and {type(self).__name__} "
                f"changes what a step does: use {type(elbo).__name__.removeprefix('Jit')}"
            )
        super().__init__(
            num_particles=elbo.num_particles, vectorize_particles=elbo.vectorize_particles
        )
        self.elbo: Any = elbo

    @abstractmethod
    def training_step(self) -> AbstractContextManager[Any]:
        """The context of a step."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The other ELBO's estimate, in nats."""
        value: float = self.elbo.loss(model, guide, *args, **kwargs)
        return value

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The other ELBO's estimate inside of the context, for autograd."""
        if torch.compiler.is_dynamo_compiling():
            return python_loss(self.differentiable_loss, (model, guide), args, kwargs)
        if not torch.is_grad_enabled():
            loss: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
            return loss
        with self.training_step():
            loss = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The other ELBO's estimate inside of the context; adds its gradient."""
        with self.training_step():
            value: float = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        return value

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs of the recipe, and of the ones inside."""
        return {"elbo": self.elbo.state_dict() if isinstance(self.elbo, WrappedELBO) else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        if isinstance(self.elbo, WrappedELBO):
            self.elbo.load_state_dict(state["elbo"])

    def _get_trace(self, *args: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no traces of its own: ask the ELBO inside")


def innermost(elbo: ELBO) -> ELBO:
    """The ELBO inside of all recipes."""
    while isinstance(elbo, WrappedELBO):
        elbo = elbo.elbo
    return elbo
