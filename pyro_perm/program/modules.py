"""The modules that a model is made of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_perm.program._torch_internals import tree_leaves
from pyro_perm.program.source_lines import is_model_code


def modules_among(roots: Any) -> Iterator[nn.Module]:
    """The modules among some objects, and those that the model's functions among them refer to."""
    seen: set[int] = set()
    queue = list(tree_leaves(roots))
    while queue:
        found = queue.pop()
        if id(found) in seen or not callable(found):
            continue
        seen.add(id(found))
        if isinstance(found, nn.Module):
            yield found
        elif isinstance(found, functools.partial):
            queue += [found.func, *found.args, *found.keywords.values()]
        elif inspect.ismethod(found):
            queue += [found.__func__, found.__self__]
        elif inspect.isfunction(found):
            if is_model_code(found.__code__):
                names = inspect.getclosurevars(found)
                queue += [*names.nonlocals.values(), *names.globals.values()]
            queue.append(getattr(found, "__wrapped__", None))
        else:
            queue += [*getattr(found, "__dict__", {}).values(), type(found).__call__]


def tensors_of_modules(roots: Any) -> Iterator[tuple[Tensor, str]]:
    """The parameters and buffers of the modules among some objects, and what they are called."""
    for module in modules_among(roots):
        for name, parameter in module.named_parameters():
            yield parameter, f"parameter '{name}'"
        for name, buffer in module.named_buffers():
            yield buffer, f"buffer '{name}'"


def pyro_modules_among(roots: Any) -> Iterator[PyroModule]:
    """Those of the modules among some objects that may hold sample sites."""
    return (module for module in modules_among(roots) if isinstance(module, PyroModule))
