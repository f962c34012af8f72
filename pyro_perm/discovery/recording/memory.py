"""Where the entries of tensors lie in memory, to follow what is written through views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_perm.program._torch_internals import sparse_parts


@dataclass(frozen=True)
class Place:
    """The coordinate along one dimension of a container that the entries of its part have.

    Attributes:
        start: the coordinate of the part's first entry.
        along: the dimension of the part along which the coordinate counts up from there. Without
            one, it is the same for all entries.
        varies_along: the dimensions of the part along which the coordinate changes in another way.
    """

    start: int
    along: int | None = None
    varies_along: tuple[int, ...] = ()


Places = tuple[Place, ...]


def storages_of(tensor: Tensor) -> tuple[int, ...]:
    """The addresses of the memory that holds a tensor's entries; sparse tensors have several."""
    parts = [tensor] if tensor.layout == torch.strided else sparse_parts(tensor)
    addresses = (part.untyped_storage().data_ptr() for part in parts)
    return tuple(address for address in addresses if address)


def whole_storage(tensor: Tensor) -> Tensor:
    """A copy of all entries of a tensor's storage, in order."""
    length = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((length,), (1,), 0).clone()


def in_storage(storage: Tensor, tensor: Tensor) -> Tensor:
    """The entries of a storage at the places of a tensor."""
    entries = storage if storage.dtype == tensor.dtype else storage.view(tensor.dtype)
    return entries.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors that share memory have an entry in common."""
    if first.layout != torch.strided or second.layout != torch.strided:
        return True
    (start, stop), (other_start, other_stop) = map(_extent_of, (first, second))
    if stop <= other_start or other_stop <= start:
        return False
    written = torch.zeros(first.untyped_storage().nbytes(), dtype=torch.bool, device="cpu")
    _bytes_of(first, written).fill_(True)
    return bool(_bytes_of(second, written).any())


def places_of(part: Tensor, container: Tensor) -> Places | None:
    """Where the entries of one tensor are in another that shares its memory.

    :returns: one place for each dimension of the container, or None if some entries are not there,
        or entries of the container share memory.
    """
    if not part.numel() or part.element_size() != container.element_size():
        return None
    rest = _addresses_of(part) - int(container.storage_offset())
    dims = [d for d, size in enumerate(container.shape) if size > 1 and container.stride(d)]
    places = [Place(0)] * container.dim()
    room = None
    for d in sorted(dims, key=container.stride, reverse=True):
        stride, size = container.stride(d), container.shape[d]
        if room is not None and size * stride > room:
            return None
        coordinate = rest.div(stride, rounding_mode="floor")
        if int(coordinate.min()) < 0 or int(coordinate.max()) >= size:
            return None
        rest, room = rest - coordinate * stride, stride
        places[d] = _place(coordinate)
    return None if bool(rest.any()) else tuple(places)


def _place(coordinate: Tensor) -> Place:
    start = int(coordinate.flatten()[0])
    moved = coordinate - start
    varies = tuple(
        dim
        for dim, size in enumerate(coordinate.shape)
        if size > 1 and bool((moved != moved.narrow(dim, 0, 1)).any())
    )
    if not varies:
        return Place(start)
    count = _count_along(coordinate, varies[0])
    if len(varies) == 1 and bool((moved == count).all()):
        return Place(start, along=varies[0])
    return Place(start, varies_along=varies)


def _addresses_of(tensor: Tensor) -> Tensor:
    addresses = torch.full(tensor.shape, int(tensor.storage_offset()), device="cpu")
    for dim in range(tensor.dim()):
        addresses += _count_along(addresses, dim) * tensor.stride(dim)
    return addresses


def _count_along(like: Tensor, dim: int) -> Tensor:
    shape = [1] * like.dim()
    shape[dim] = -1
    return torch.arange(like.shape[dim], device="cpu").view(shape)


def _extent_of(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor's entries in its storage, and the first after them."""
    if not tensor.numel():
        return 0, 0
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    start, size = int(tensor.storage_offset()), tensor.element_size()
    return start * size, (start + last + 1) * size


def _bytes_of(tensor: Tensor, memory: Tensor) -> Tensor:
    size = tensor.element_size()
    strides = (*(stride * size for stride in tensor.stride()), 1)
    return memory.as_strided((*tensor.shape, size), strides, tensor.storage_offset() * size)
