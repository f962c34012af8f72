"""Arrays of numpy on the CPU, where its calls cost a third of torch's, and tensors elsewhere.

Code that serves both takes functions of the same name and meaning from :func:`namespace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

#: An array of numpy, or a tensor of a device other than the CPU.
Array: TypeAlias = Any


def namespace(array: Array) -> Any:
    """The module whose functions take such arrays."""
    return np if isinstance(array, np.ndarray) else torch


def as_array(tensor: Tensor) -> Array:
    """In double precision, sharing memory where possible."""
    tensor = tensor.detach().double()
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def as_tensor(array: Array) -> Tensor:
    """Sharing memory."""
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def as_index(tensor: Tensor) -> Array:
    """Positions, or a mask, as an array."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def empty(shape: Sequence[int], like: Array) -> Array:
    """Where and in the precision of another array."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, like.dtype)
    return like.new_empty(tuple(shape))


def both(first: Array, second: Array) -> Array:
    """Two arrays of one shape, as one; quicker than to stack them."""
    joined = empty((2, *first.shape), first)
    joined[0], joined[1] = first, second
    return joined


def numbers(num: int, like: Array) -> Array:
    """0, 1 and so on, one below the other, shape ``(num, 1)``."""
    if isinstance(like, np.ndarray):
        return np.arange(num, dtype=like.dtype)[:, None]
    return torch.arange(num, dtype=like.dtype, device=like.device).unsqueeze(-1)


def positions(mask: Array) -> Array:
    """Where a mask of one dimension is true."""
    return namespace(mask).argwhere(mask)[:, 0]
