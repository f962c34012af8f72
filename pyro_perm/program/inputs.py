"""What a program is called with, and the tensors among it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_perm.program._torch_internals import tree_leaves, tree_map
from pyro_perm.program.call import Call, Program


@dataclass(frozen=True)
class Inputs:
    """The arguments of a call.

    Attributes:
        args: those without a name.
        kwargs: those with one.
    """

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def call(self, program: Program) -> Call:
        """A program, called with them."""
        return Call(program, tuple(self.args), self.kwargs)

    def map(self, convert: Callable[[Any], Any]) -> Inputs:
        """The same arguments, every leaf of them converted."""
        return Inputs(tree_map(convert, self.args), tree_map(convert, self.kwargs))

    def items(self) -> Iterator[tuple[Any, str]]:
        """The arguments and what they are called."""
        for position, value in enumerate(self.args):
            yield value, f"argument {position}"
        for name, value in self.kwargs.items():
            yield value, f"argument '{name}'"

    def tensors(self) -> Iterator[tuple[Tensor, str]]:
        """The tensors among the arguments and where they are."""
        for value, name in self.items():
            for leaf in tree_leaves(value):
                if isinstance(leaf, Tensor):
                    yield leaf, name

    @property
    def hidden_data(self) -> str | None:
        """An argument that holds data which is not a tensor, and would look like a constant."""
        for value, name in self.items():
            has_numbers = not isinstance(value, int | float)
            for leaf in tree_leaves(value):
                is_array = hasattr(leaf, "__array__") and not isinstance(leaf, Tensor)
                if is_array or (has_numbers and isinstance(leaf, int | float)):
                    return f"{name}; pass a tensor"
        return None
