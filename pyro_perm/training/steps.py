"""One gradient step, by an optimizer of PyTorch or by one of Pyro's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_perm.program.batches import Arguments
from pyro_perm.training.processes import Parallel, SharedLoss, with_gradient
from pyro_perm.training.wrapped_elbo import innermost

Program = Callable[..., Any]
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class Steps(Protocol):
    """Takes gradient steps, and can tell where it stands."""

    @property
    def learning_rate(self) -> float | None:
        """Of the next step, where it is one number."""

    def step(self, call: Arguments) -> float:
        """Take a step; returns the loss in nats."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""


class TorchSteps:
    """Steps by an optimizer of PyTorch over all parameters that model and guide use.

    :param elbo: the loss.
    :param model: the model; ``guide`` likewise.
    :param make_optimizer: from parameters to an optimizer.
    :param make_scheduler: from the optimizer to its schedule, which steps after each step.
    :param parallel: makes the module that shares gradients with other processes, if there are.
    :param call: a first batch, by which the parameters are known.
    """

    def __init__(
        self,
        elbo: ELBO,
        model: Any,
        guide: Any,
        make_optimizer: MakeOptimizer,
        make_scheduler: MakeScheduler | None,
        parallel: Parallel | None,
        call: Arguments,
    ) -> None:
        loss = elbo(model, guide)
        args, kwargs = call
        with torch.no_grad(), poutine.trace(param_only=True) as tracer:
            loss(*args, **kwargs)
        nodes: Any = tracer.trace.nodes
        met = ((name, _unconstrained(node["value"])) for name, node in nodes.items())
        by_identity = {id(p): (name, p) for name, p in (*loss.named_parameters(), *met)}
        parameters = list(by_identity.values())
        self._loss = loss
        if parallel is not None:
            trial = innermost(elbo)(model, guide)  # A recipe would count it as a step.
            self._loss = parallel(SharedLoss(loss, with_gradient(trial, parameters, call)))
        self._optimizer = make_optimizer(parameter for _, parameter in parameters)
        self._scheduler = None if make_scheduler is None else make_scheduler(self._optimizer)

    @property
    def learning_rate(self) -> float | None:
        """Of the first group of parameters."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, call: Arguments) -> float:
        """Take a step; returns the loss in nats."""
        args, kwargs = call
        self._optimizer.zero_grad()
        loss = self._loss(*args, **kwargs)
        loss.backward()
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer and of its schedule."""
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        return {"optimizer": self._optimizer.state_dict(), "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        :raises ValueError: if only one of the two runs has a schedule.
        """
        if (self._scheduler is None) != (state["scheduler"] is None):
            raise ValueError("the checkpoint's run and this one must both have a schedule, or none")
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])


class PyroSteps:
    """Steps of :class:`~pyro.infer.SVI` with an optimizer of Pyro's.

    They take plain parameters of modules under ``module_local_params`` too, where SVI's own fail.

    :param elbo: the loss.
    :param model: the model; ``guide`` likewise.
    :param optimizer: one of :mod:`pyro.optim`. One with a schedule steps it after each step.
    :param call: a first batch, by which the parameters are known.
    """

    def __init__(
        self, elbo: Any, model: Program, guide: Program, optimizer: PyroOptim, call: Arguments
    ) -> None:
        self._elbo, self._model, self._guide, self._optimizer = elbo, model, guide, optimizer
        args, kwargs = call
        with torch.no_grad(), poutine.trace(param_only=True) as tracer:
            elbo.loss(model, guide, *args, **kwargs)
        self._nodes: Any = tracer.trace.nodes
        if callable(optimizer.pt_optim_args):
            self.require_names()

    def require_names(self) -> None:
        """Refuse parameters that the optimizer cannot tell apart.

        :raises ValueError: naming one.
        """
        store = pyro.get_param_store()
        for name, node in self._nodes.items():
            if store.param_name(_unconstrained(node["value"])) is None:
                raise ValueError(
                    "optimizers of pyro.optim know parameters by names of Pyro's param store, "
                    f"where parameter '{name}' is not under module_local_params: give one of "
                    "torch.optim as optimizer=, or leave out checkpoint= and arguments that depend "
                    "on the name"
                )

    @property
    def learning_rate(self) -> float | None:
        """Not known: each parameter has an optimizer of its own."""
        return None

    def step(self, call: Arguments) -> float:
        """Take a step; returns the loss in nats."""
        args, kwargs = call
        with poutine.trace(param_only=True) as tracer:
            loss = float(self._elbo.loss_and_grads(self._model, self._guide, *args, **kwargs))
        nodes: Any = tracer.trace.nodes
        parameters = list({_unconstrained(node["value"]) for node in nodes.values()})
        self._optimizer(parameters)
        zero_grads(parameters)
        if hasattr(self._optimizer, "step"):
            self._optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer of each parameter."""
        return dict(self._optimizer.get_state())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._optimizer.set_state(state)


def _unconstrained(value: Any) -> Tensor:
    """What an optimizer moves of a param statement's value.

    A plain parameter of a module is no value of the param store under ``module_local_params``.
    """
    found: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    return found
