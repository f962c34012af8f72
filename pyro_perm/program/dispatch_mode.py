"""A base class for looking at the tensor operations of a program."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class EagerDispatchMode(TorchDispatchMode):
    """A dispatch mode for eager programs.

    PyTorch guards dispatch modes against ``torch.compile``, and for that imports its compiler at
    the first operation, which takes seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
