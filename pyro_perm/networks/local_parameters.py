"""What priors and likelihoods learn, as parameters of the module that runs them.

With ``pyro.settings.set(module_local_params=True)`` a module's parameters are its own, and Pyro
refuses statements of others within it.
"""

from __future__ import annotations

import weakref
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to


class LocalParameters(nn.ParameterDict):
    """Unconstrained parameters, by their names in Pyro; names of modules are cut off by colons."""

    def handler(self) -> Messenger:
        """A handler under which parameters that are stated are these, where they are to be."""
        return _Own(self) if pyro.settings.get("module_local_params") else Messenger()

    def value(self, name: str, initial: Any, constraint: Any) -> Tensor:
        """A parameter's value, which starts from the initial one.

        :param initial: a tensor, or a function that makes it.
        """
        key, to_support = name.replace(".", ":"), transform_to(constraint)
        if key not in self:
            first = initial() if callable(initial) else initial
            with torch.no_grad():
                self[key] = nn.Parameter(to_support.inv(first).clone())
        unconstrained = self[key]
        value: Any = to_support(unconstrained)
        value.unconstrained = weakref.ref(unconstrained)
        return torch.as_tensor(value)


class _Own(Messenger):
    def __init__(self, parameters: LocalParameters) -> None:
        super().__init__()
        self._parameters = parameters

    def _pyro_param(self, msg: Any) -> None:
        name, *initial = msg["args"]
        # The network's parameters are the module's already.
        if initial and not isinstance(initial[0], nn.Parameter):
            constraint = msg["kwargs"].get("constraint", constraints.real)
            msg["value"], msg["done"] = self._parameters.value(name, initial[0], constraint), True
