"""What ``torch.compile`` reads of a loss.

The compiler reads Python, and gives up at Pyro's handlers. It need not read them: a call that it
leaves alone is recorded when it is run on tensors without contents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_perm.compiled.recorder import Recorder


def graph_loss(
    recorder: Recorder | None, loss: Callable[..., Tensor], programs: Any, args: Any, kwargs: Any
) -> Tensor:
    """A loss as one call, whose arguments are all that its graph depends on.

    The first call, and calls inside of handlers, are left to Python.

    :param recorder: of the loss, once it has been called.
    :param loss: takes model and guide, and the arguments of a step.
    :param programs: model and guide.
    """
    if recorder is None or am_i_wrapped():
        return python_loss(loss, programs, args, kwargs)
    from pyro_perm.compiled.boundaries import recorded_loss  # Imports the compiler.

    tensors = {**dict(recorder.named_parameters()), **dict(recorder.named_buffers())}
    modes = [module.training for module in recorder.modules()]
    return recorded_loss(recorder.name, tensors, modes, args, kwargs)


def python_loss(loss: Callable[..., Tensor], programs: Any, args: Any, kwargs: Any) -> Tensor:
    """A loss that is computed outside of graphs. With ``fullgraph=True`` the compiler refuses."""
    from pyro_perm.compiled.boundaries import python_call  # Imports the compiler.

    return python_call(loss, *programs, *args, **kwargs)
