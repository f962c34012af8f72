"""What the package uses of torch beyond its public interface, in one place.

``tests/program/test_torch_internals.py`` says of each what it relies on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _pop_mode_temporarily,
)
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "VALIDATING_FUNCTIONS",
    "VALUE_READERS",
    "EagerDispatchMode",
    "EagerFunctionMode",
    "arguments_of",
    "autograd_in_operators",
    "depends_on_values",
    "has_no_contents",
    "is_composite",
    "is_operator",
    "operators",
    "sparse_parts",
    "tensors_of",
    "tree_leaves",
    "tree_map",
    "without_compiler",
    "without_innermost",
    "writes",
]

# Methods of a distribution that check its arguments, or a sample, against a constraint.
VALIDATING_FUNCTIONS = frozenset({"__init__", "_validate_sample"})

# Methods that read a tensor's values without an operation.
VALUE_READERS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Run what ``torch.compile`` has made as it was written.

    The compiler would read our modes as part of the program, and compile it anew for each.
    """
    if "torch._dynamo" not in sys.modules:  # Nothing is compiled, and the import takes seconds.
        yield
        return
    torch._dynamo.graph_break()  # A compiler that reads this refuses to change its stance.
    outer = torch._C._dynamo.eval_frame.set_eval_frame(None)
    try:
        with _eager_stance():
            yield
    finally:
        torch._C._dynamo.eval_frame.set_eval_frame(outer)


def _eager_stance() -> AbstractContextManager[Any]:
    """What ``torch.compiler.set_stance("force_eager")`` is, before PyTorch 2.6 too."""
    if hasattr(torch.compiler, "set_stance"):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    switch = torch._C._dynamo.eval_frame.set_eval_frame
    return mock.patch("torch._dynamo.eval_frame.set_eval_frame", lambda callback: switch(None))


class _Eager:
    """A mode that looks on at programs as they were written."""

    def __init__(self) -> None:
        super().__init__()
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> Any:
        context = without_compiler()
        context.__enter__()
        self._entered.append(context)
        return super().__enter__()  # type: ignore[misc]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[misc]
        self._entered.pop().__exit__(*error)


class EagerFunctionMode(_Eager, TorchFunctionMode):
    """A function mode for eager programs: sees each of their calls of torch."""


class EagerDispatchMode(_Eager, TorchDispatchMode):
    """A dispatch mode for eager programs: sees each of their tensor operations.

    PyTorch guards dispatch modes against ``torch.compile``, and for that imports its compiler at
    the first operation, which takes seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


_Mode = TypeVar("_Mode", bound=TorchDispatchMode)


@contextmanager
def without_innermost(kind: type[_Mode]) -> Iterator[_Mode | None]:
    """Switch the innermost dispatch mode off if it is of some kind: that mode, or else None."""
    innermost = _get_current_dispatch_mode()
    if not isinstance(innermost, kind):
        yield None
        return
    with _pop_mode_temporarily():
        yield innermost


def has_no_contents(tensor: Tensor) -> bool:
    """Whether a tensor stands for those of its shape, as those that compilers run programs on."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # Inside of vmap.
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def operators(*names: str) -> Iterator[Any]:
    """The operators of ``torch.ops.aten`` with some names, such as ``"_softmax"`` or ``"add.out"``.

    Names that this version of torch does not have are skipped: private ones come and go.
    """
    for name in names:
        packet, _, overload = name.partition(".")
        found = getattr(torch.ops.aten, packet, None)
        if found is not None and overload:
            found = getattr(found, overload, None)
        if found is not None:
            yield found


def is_operator(operation: Any) -> bool:
    """Whether something is an operator of ``torch.ops``, or one of its overloads."""
    return isinstance(operation, torch._ops.OpOverload | torch._ops.OpOverloadPacket)


def tensors_of(*values: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results of operations, which nest in lists and tuples only."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(*value)


def arguments_of(operation: Any) -> list[Any]:
    """The arguments in the schema of an operator's overload."""
    arguments: list[Any] = operation._schema.arguments
    return arguments


@functools.cache
def depends_on_values(operation: Any) -> bool:
    """Whether an overload makes of entries what programs branch on: a number, or a shape."""
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return not tags.isdisjoint(operation.tags)


def writes(operation: Any) -> bool:
    """Whether an overload writes into one of its arguments."""
    return bool(operation._schema.is_mutable)


def is_composite(operation: Any) -> bool:
    """Whether an overload is implemented by others, as which ``decompose`` carries it out."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), key))


def sparse_parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors of which a sparse one is made: where its entries are, and their values."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []


@contextmanager
def autograd_in_operators() -> Iterator[None]:
    """Record gradients inside of an operator of our own, below which PyTorch switches that off."""
    keys = torch._C.DispatchKey
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in (
        keys.AutogradFunctionality,
        keys.AutogradOther,
        keys.AutogradNestedTensor,
        keys.ADInplaceOrView,
    ):
        exclude = exclude.remove(key)
    include = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield
