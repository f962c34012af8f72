"""Running a model in double precision without changing it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_perm.program._torch_internals import VALUE_READERS, EagerDispatchMode, depends_on_values

_LOW = (torch.float32, torch.float16, torch.bfloat16)

# These compare the types of their arguments before any dispatch mode sees them.
_CHECK_TYPES_FIRST = (
    *(torch.prelu, torch.Tensor.prelu, torch.bilinear),
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
)


class DoublePrecision(EagerDispatchMode):
    """Carries out every operation in double precision.

    Tensors of lower precision are replaced by double copies where operations meet them, once for
    each tensor, so that writes into them are seen by later operations and never leave this context.

    Attributes:
        is_needed: whether anything has been converted so far, or a value was read, which may decide
            what is computed next. Without either, a program carries out the same operations, all
            of them in double precision, outside of this context too, where they take a third of
            the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_needed = False
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._before_checks = _BeforeChecks(self)

    def __enter__(self) -> DoublePrecision:
        self._before_checks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._before_checks.__exit__(*error)

    def double(self, value: Any) -> Any:
        """Tensors and types of lower precision, also in lists, made double; the rest as it is."""
        if isinstance(value, Tensor):
            return self._double_tensor(value) if value.dtype in _LOW else value
        if isinstance(value, list | tuple):
            return [self.double(item) for item in value]
        if isinstance(value, torch.dtype) and value in _LOW:
            self.is_needed = True
            return torch.float64
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.is_needed = self.is_needed or depends_on_values(func)
        kwargs = {name: self.double(value) for name, value in (kwargs or {}).items()}
        return func(*map(self.double, args), **kwargs)

    def _double_tensor(self, tensor: Tensor) -> Tensor:
        self.is_needed = True
        known = self._copies.get(id(tensor))
        if known is None:
            # The original is kept along with its copy so that no other tensor gets its id.
            known = self._copies[id(tensor)] = tensor, tensor.detach().double()
        return known[1]


class _BeforeChecks(TorchFunctionMode):
    """Makes the arguments of functions double that would refuse mixed types; sees values read."""

    def __init__(self, precision: DoublePrecision) -> None:
        super().__init__()
        self._precision = precision

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _CHECK_TYPES_FIRST:
            args = tuple(map(self._precision.double, args))
        elif func in VALUE_READERS:
            self._precision.is_needed = True
        return func(*args, **(kwargs or {}))
