"""Where in the user's model an operation comes from."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import CodeType

import pyro
import torch

from pyro_perm.program._torch_internals import VALIDATING_FUNCTIONS

_PACKAGE = Path(__file__).parents[1]
_RUNNERS = [
    str(Path(_PACKAGE, "program", file))
    for file in ("program.py", "pyro_model.py", "torch_module.py")
]
_ANALYSIS = [str(Path(_PACKAGE, room)) for room in ("program", "discovery", "verification")]
_TORCH, _PYRO = (str(Path(str(module.__file__)).parent) for module in (torch, pyro))
_NOT_THE_MODEL = (*_ANALYSIS, _TORCH, _PYRO, str(contextlib.__file__), "<")
_DISTRIBUTIONS = tuple(str(Path(root, "distributions")) for root in (_TORCH, _PYRO))


def source_line() -> str | None:
    """``file.py:line`` of the innermost frame that belongs to the model, if there is one."""
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename in _RUNNERS:
            return None
        if is_model_code(frame.f_code):
            return f"{Path(filename).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def is_model_code(code: CodeType) -> bool:
    """Whether code belongs to the model, not to PyTorch, Pyro or this analysis."""
    return not code.co_filename.startswith(_NOT_THE_MODEL)


def is_validation() -> bool:
    """Whether a distribution is validating its arguments: that cannot change the log joint."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_MODEL):
        if frame.f_code.co_name in VALIDATING_FUNCTIONS and (
            frame.f_code.co_filename.startswith(_DISTRIBUTIONS)
        ):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
