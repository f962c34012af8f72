"""Tensors on their way to other processes: by value, and without the rest of their memory."""

from __future__ import annotations

import io
import pickle
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pyro_perm.program._torch_internals import tree_leaves, tree_map

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class ByValue(Generic[_Value]):
    """What is sent with the values of its tensors, by multiprocessing as by any other pickler.

    multiprocessing's pickler would move their memory, a live guide's among it, to where it is
    shared, in a thread of its own: it is lost to who reads it here at that time, and what one
    process writes there, all others see. Other picklers know more than one here could, as Dask's
    does of functions that have no module.

    Attributes:
        value: what is sent.
    """

    value: _Value


def _through_bytes(sent: ByValue[Any]) -> tuple[Callable[..., ByValue[Any]], tuple[bytes]]:
    buffer = io.BytesIO()
    torch.save(sent.value, buffer, pickle_protocol=pickle.DEFAULT_PROTOCOL)
    return _of_bytes, (buffer.getvalue(),)


def _of_bytes(content: bytes) -> ByValue[Any]:
    return ByValue(torch.load(io.BytesIO(content), weights_only=False))


ForkingPickler.register(ByValue, _through_bytes)


def in_memory_of_their_own(sent: Any) -> Any:
    """Copies of tensors that are the only ones here to show a part of a larger memory.

    With a view all of the memory would be sent, as that of all data with each batch.
    """
    tensors = [leaf for leaf in tree_leaves(sent) if type(leaf) is Tensor and is_dense(leaf)]
    views = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors)
    copied = {
        id(tensor): tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for tensor in tensors
        if views[tensor.untyped_storage().data_ptr()] == 1
        and tensor.nbytes < tensor.untyped_storage().nbytes()
    }
    return tree_map(lambda leaf: copied.get(id(leaf), leaf), sent)


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor shows a memory of numbers."""
    return tensor.layout == torch.strided and not tensor.is_nested


def checksum(tensor: Tensor) -> int:
    """Of the values of a dense tensor."""
    flat = tensor.detach().resolve_conj().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data)
