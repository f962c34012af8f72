"""Which plates' indices a program looks at."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_perm.program._torch_internals import EagerFunctionMode, tensors_of

# They tell how many indices there are, not which.
_SHAPE_ONLY = {
    *("__len__", "size", "dim", "numel", "nelement", "ndimension", "stride", "element_size"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "is_floating_point"),
}


class IndexWatch(EagerFunctionMode):
    """Notes which of the tensors that it was told about are read, rather than counted.

    Attributes:
        read: names of those that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()
        self._names: dict[int, str] = {}
        self._kept: list[Tensor] = []

    def add(self, indices: Tensor, name: str) -> None:
        """Watch a tensor."""
        self._names[id(indices)] = name
        self._kept.append(indices)  # so that no other tensor gets its id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        is_attribute = func.__name__ == "__get__" and not isinstance(result, Tensor)
        if not is_attribute and func.__name__ not in _SHAPE_ONLY:
            for tensor in tensors_of(*args, *kwargs.values()):
                if id(tensor) in self._names:
                    self.read.add(self._names[id(tensor)])
        return result
