"""Where the compiler stops reading. Importing this imports the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_perm.compiled.recorder import recorder_of


def _recorded_loss(
    name: str, tensors: Mapping[str, Tensor], modes: Sequence[bool], args: Any, kwargs: Any
) -> Tensor:
    """A loss as one node of a graph, which is then recorded by running it.

    :param name: of its recorder.
    :param tensors: the recorder's parameters and buffers, by name.
    :param modes: whether each of its modules is in training; a graph is recorded for each.
    """
    return recorder_of(name).record(tensors, args, kwargs)


def first_call_or_handlers(loss: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A call of a loss that no graph can hold, left to Python.

    The first one finds the symmetry and makes the guide's parameters; those inside of handlers, as
    which recipes are written, depend on them.
    """
    return loss(*args, **kwargs)


recorded_loss: Callable[..., Tensor] = torch.compiler.allow_in_graph(_recorded_loss)
python_call: Callable[..., Tensor] = torch.compiler.disable(first_call_or_handlers)
