"""Running a model without leaving a trace in the user's program."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.block_messenger import BlockMessenger
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_perm.program._pyro_internals import outer_handler, own_calls
from pyro_perm.program._torch_internals import (
    EagerDispatchMode,
    arguments_of,
    tensors_of,
    without_compiler,
    without_innermost,
)
from pyro_perm.program.modules import pyro_modules_among
from pyro_perm.program.seeds import fixed_seed

_AUTOGUIDE_HANDLERS = (InitMessenger, BlockMessenger)

# These operations do not declare that they write running mean and variance, while training.
_BATCH_NORMS = ("aten::native_batch_norm", "aten::cudnn_batch_norm")
_RUNNING_MOMENTS, _IS_TRAINING = (3, 4), 5


@contextmanager
def isolation(model: Callable[..., Any]) -> Iterator[WriteLog]:
    """Leave random state, parameter store and buffers as they were; switch fused kernels off.

    What the model writes in place is restored at the end, if its first run is made inside of the
    log that this context returns. Fused attention and recurrent kernels hide the operations that
    the analysis reads, and some of them do not exist in double precision.

    A log around this one need not see what is undone here, and is told what has come into being.
    """
    with ExitStack() as stack:
        outer = stack.enter_context(without_innermost(WriteLog))
        for context in (
            without_compiler(),
            poutine.block(),
            fixed_seed(),
            own_calls(pyro_modules_among(model)),
            _without_new_params(),
            torch.no_grad(),
            pyro.validation_enabled(False),
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.cudnn.flags(enabled=False),
            _without_onednn(),
            _without_fast_attention(),
        ):
            stack.enter_context(context)
        log = WriteLog()
        if outer is not None:
            stack.callback(outer.add_new_of, log)
        stack.callback(log.restore)
        yield log


def without_autoguide_handlers(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model without the outer handlers by which an autoguide hides and initializes sites."""
    while (found := outer_handler(model)) is not None:
        handler, inner = found
        if not isinstance(handler, _AUTOGUIDE_HANDLERS):
            break
        model = inner
    return model


def written_tensors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors whose entries an operation writes in place."""
    written: list[Tensor] = []
    if _is_batch_norm(func) and args[_IS_TRAINING]:
        written += [args[i] for i in _RUNNING_MOMENTS if args[i] is not None]
    for position, name in _written_arguments(func):
        value = args[position] if position < len(args) else kwargs.get(name)
        several = value if isinstance(value, list | tuple) else [value]
        written.extend(tensor for tensor in several if isinstance(tensor, Tensor))
    return written


@functools.cache
def _is_batch_norm(func: Any) -> bool:
    return func.name() in _BATCH_NORMS


@functools.cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    if torch.Tag.inplace_view in func.tags:  # changes the shape, not the entries
        return []
    return [
        (position, argument.name)
        for position, argument in enumerate(arguments_of(func))
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


class WriteLog(EagerDispatchMode):
    """Remembers every tensor that is written in place: buffers, counters, caches.

    What comes into being meanwhile is not remembered: parameters that a first run initializes keep
    their initial values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._new: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in written_tensors(func, args, kwargs):
            if _storage(tensor) not in self._new:
                self._saved.append((tensor.detach(), tensor.clone()))
        result = func(*args, **kwargs)
        made = _storages(result) - self._new
        if made:
            self._new |= made - _storages(*args, *kwargs.values())
        return result

    def add_new_of(self, other: WriteLog) -> None:
        """Count as new here, too, what came into being while another log looked on."""
        self._new |= other._new

    def restore(self) -> None:
        """Undo the writes."""
        while self._saved:
            tensor, value = self._saved.pop()
            tensor.copy_(value)


def _storages(*values: Any) -> set[int]:
    return {_storage(tensor) for tensor in tensors_of(*values)}


def _storage(tensor: Tensor) -> int:
    """Where the entries lie; what existed before cannot lie where something new came to lie."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


@contextmanager
def _without_new_params() -> Iterator[None]:
    # Not ParamStoreDict.scope: its get_state() strips the back references of live parameters,
    # which an enclosing SVI.step still needs.
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        for name in set(store.keys()) - before:
            del store[name]


@contextmanager
def _without_onednn() -> Iterator[None]:
    flags = torch.backends.mkldnn.flags(enabled=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about hardware that this switch does not concern
        flags.__enter__()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags.__exit__(None, None, None)


@contextmanager
def _without_fast_attention() -> Iterator[None]:
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
