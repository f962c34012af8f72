"""A loss of Pyro as a function of tensors, which is run on tensors without contents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_perm.compiled.log_ratio_operator import Estimate
from pyro_perm.density.density import Density
from pyro_perm.estimators import Estimator
from pyro_perm.program._torch_internals import has_no_contents, tree_leaves, tree_map

Loss = Callable[..., Tensor]

_numbers = count()
_active: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


class Recorder(torch.nn.Module):
    """A loss, and the modules whose tensors it depends on.

    :param loss: takes the arguments of a step.
    :param programs: model and guide; those that are modules have tensors.

    Attributes:
        name: what graphs know it by; a compiler takes one number after another for a variable.
    """

    def __init__(self, loss: Loss, *programs: Any) -> None:
        super().__init__()
        self._loss = loss
        self.programs = torch.nn.ModuleList(p for p in programs if isinstance(p, torch.nn.Module))
        self._estimates: list[Estimate] = []
        self._take_name()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss."""
        return self._loss(*args, **kwargs)

    def record(self, tensors: Mapping[str, Tensor], args: Any, kwargs: Any) -> Tensor:
        """The loss at other tensors than the modules have, decided by none of their numbers.

        :param tensors: all parameters and buffers, by name.
        """
        before = _active.set(self)
        is_rehearsal = any(map(has_no_contents, tensors.values()))
        try:
            with pyro.validation_enabled(False), _OwnTensors() if is_rehearsal else nullcontext():
                args, kwargs = tree_map(_as_number, (args, kwargs))
                loss: Tensor = torch.func.functional_call(self, dict(tensors), args, kwargs)
        finally:
            _active.reset(before)
        return loss

    def log_ratio(self, density: Density, estimator: Estimator) -> Tensor:
        """``log q^G(w) - log q(w)`` as an operator of the graph, shape ``(*batch)``, in nats.

        :raises TypeError: if the base guide draws its sites jointly, or units are rescaled.
        """
        if density.symmetry.open_groups:
            raise TypeError(
                f"group '{density.symmetry.open_groups[0]}' rescales its units, whose priors no "
                "graph can hold: train without torch.compile, or find the symmetry without scales"
            )
        if not density.factorizes:
            raise TypeError(
                "torch.compile takes guides that draw their sites independently, such as "
                "AutoNormal: train this one without it"
            )
        estimate = Estimate(density.symmetry, estimator)
        self._estimates.append(estimate)
        return estimate(density)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._take_name()

    def _take_name(self) -> None:
        self.name = f"loss {next(_numbers)}"
        _recorders[self.name] = self


class _OwnTensors(TorchFunctionMode):
    """Refuses tensors that a graph would hold as they are now, and without their gradients."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and not has_no_contents(tensor):
                _require_constant(tensor)
        return func(*args, **(kwargs or {}))


def _as_number(argument: Any) -> Any:
    """A number in place of the symbol that a compiler has for it; Pyro's distributions take none.

    Asking for it makes the compiler record anew for another number.
    """
    if isinstance(argument, torch.SymFloat):
        return float(argument)
    return int(argument) if isinstance(argument, torch.SymInt) else argument


def _require_constant(tensor: Tensor) -> None:
    """Refuse a tensor from outside, unless it is a number.

    :raises ValueError: naming its shape.
    """
    if tensor.requires_grad or tensor.dim():
        raise ValueError(
            f"a compiled loss uses a tensor of shape {tuple(tensor.shape)} that is neither among "
            "its arguments nor a parameter or buffer of model or guide: pass it as an argument, "
            "or make the model a torch.nn.Module that has it (with pyro.nn.PyroParam in place of "
            "pyro.param)"
        )


_recorders: WeakValueDictionary[str, Recorder] = WeakValueDictionary()


def recorder_of(name: str) -> Recorder:
    """The recorder that graphs know by a name."""
    return _recorders[name]


def active_recorder() -> Recorder | None:
    """The recorder that is at work, if one is."""
    return _active.get()
