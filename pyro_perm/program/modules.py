"""The modules that a model is made of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pyro_perm.program.source_lines import is_model_code


def modules_among(roots: Any) -> Iterator[nn.Module]:
    """The modules among some objects, and those that the model's functions among them refer to."""
    seen: set[int] = set()
    queue = list(tree_flatten(roots)[0])
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


@contextmanager
def own_calls(model: Any) -> Iterator[None]:
    """Let a model draw its sites anew at each call, also while it is being called.

    A :class:`~pyro.nn.PyroModule` keeps what it drew until the outermost call of its tree returns:
    a guide that shares the tree with its model would see each site once.
    """
    contexts = {
        id(module._pyro_context): module._pyro_context
        for module in modules_among(model)
        if isinstance(module, PyroModule)
    }.values()
    before = [dict(vars(context)) for context in contexts]
    for context in contexts:
        context.active, context.cache = 0, {}
    try:
        yield
    finally:
        for context, state in zip(contexts, before, strict=True):
            vars(context).update(state)
