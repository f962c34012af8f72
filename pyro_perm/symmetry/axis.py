"""One axis of a site's tensor, and how a group of units lies along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """The axis of a site along which a group's units are laid out.

    Along an axis of length ``outer * size * inner`` the ``size`` units are the middle factor of
    the row-major view ``(outer, size, inner)``: a flattened channel-by-space axis has
    ``inner = H * W``, a fused query/key/value projection has ``outer = 3``.

    >>> import pyro_perm as pp
    >>> pp.Axis(0, outer=3, inner=2).size(24)  # queries, keys and values of heads of dimension 2
    4

    :param dim: dimension in the site's event shape; a negative one counts from the right, and may
        reach into the site's plates, which lie to the left of its event shape.
    :param outer: how often the whole group is repeated along the axis.
    :param inner: how many consecutive entries belong to one unit.
    :param index: the coordinates along the axis that the group permutes, in
        ``(outer, size, inner)`` order, where these are not all of them: a segment of a
        concatenation, one class of units.
    :param sign: whether flipping a unit negates its entries along this axis. A group with such an
        axis flips the signs of its units, besides permuting them.
    :param scale: by which power of ``c`` rescaling a unit by ``c > 0`` multiplies its entries along
        this axis: 1 for incoming weights and biases of a rectifier's units, -1 for outgoing ones.
    :param permute: whether the group permutes its units at all; one that does not only rescales
        them or flips their signs. All axes of a group agree.
    """

    dim: int
    outer: int = 1
    inner: int = 1
    index: range | tuple[int, ...] | None = None
    sign: bool = False
    scale: int = 0
    permute: bool = True

    def __post_init__(self) -> None:
        if self.outer < 1 or self.inner < 1:
            raise ValueError(f"{self}: outer and inner must be at least 1")
        if self.index is not None and len(set(self.index)) < len(self.index):
            raise ValueError(f"{self}: index names a coordinate twice")

    def __str__(self) -> str:
        values = ((each.name, getattr(self, each.name), each.default) for each in fields(self)[1:])
        structure = [f"{name}={value}" for name, value, default in values if value != default]
        if not structure and type(self) is Axis:
            return str(self.dim)
        return f"{type(self).__name__}({', '.join([str(self.dim), *structure])})"

    def resolve(self, shape: tuple[int, ...], event_dim: int) -> Axis:
        """This axis with its dimension counted from the right of a value of the given shape.

        :param shape: the site's shape, plates on the left, event on the right.
        :param event_dim: how many of its dimensions are the event's.
        :raises ValueError: where the dimension or a coordinate of ``index`` is out of range.
        """
        dim = self.dim if self.dim < 0 else self.dim - event_dim
        if not -len(shape) <= dim < 0:
            plates = len(shape) - event_dim
            raise ValueError(
                f"axis {self} is out of range for event shape {shape[plates:]}"
                + (f" inside plates of shape {shape[:plates]}" if plates else "")
            )
        length = shape[dim]
        if self.index is not None and not all(0 <= k < length for k in self.index):
            raise ValueError(f"axis {self}: index leaves the axis, which has length {length}")
        return replace(self, dim=dim)

    def size(self, length: int) -> int:
        """How many units lie along an axis of this length.

        :raises ValueError: if ``outer * inner`` does not divide the number of permuted coordinates.
        """
        permuted = length if self.index is None else len(self.index)
        block = self.outer * self.inner
        if permuted % block:
            raise ValueError(
                f"axis {self} has {permuted} entries, which outer * inner = {block} does not divide"
            )
        return permuted // block

    def is_disjoint_from(self, other: Axis, length: int) -> bool:
        """Whether two axes lie along the same dimension and share no coordinate."""
        if self.dim != other.dim or self.index is None or other.index is None:
            return False
        return set(self.index).isdisjoint(other.index)

    def gather_index(self, units: Tensor, length: int) -> Tensor:
        """Coordinates to gather along the axis so that unit ``i`` becomes unit ``units[i]``.

        :param units: a permutation, shape ``(..., size)``.
        :param length: length of the axis.
        :returns: shape ``(..., length)``.
        """
        if self.index is None and self.outer == self.inner == 1:
            return units
        table = self.coordinates(length, units.device)
        blocks = table.view(self.outer, units.shape[-1], self.inner)
        moved: Tensor = blocks.index_select(1, units.flatten()).unflatten(1, units.shape)
        moved = moved.movedim(0, -3).flatten(-3)
        if self.index is None:
            return moved
        batch = units.shape[:-1]
        identity = torch.arange(length, device=units.device).expand(*batch, length)
        return identity.scatter(-1, table.expand(*batch, len(table)), moved)

    def take(self, value: Tensor, units: Tensor, rank: int) -> Tensor:
        """A site's tensor, with unit ``i`` taken from unit ``units[i]``.

        :param value: shape ``(*batch, *site shape)``; ``dim`` counts from the right.
        :param units: a permutation, shape ``(*batch, size)``.
        :param rank: number of dimensions of the site's shape.
        """
        return _take(value, self.gather_index(units, value.shape[self.dim]), self.dim, rank)

    def along(self, numbers: Tensor, length: int, rank: int, *, elsewhere: float = 1.0) -> Tensor:
        """Numbers, one a unit, laid along the axis of a site.

        :param numbers: shape ``(*batch, size)``.
        :param length: length of the axis.
        :param rank: number of dimensions of the site's shape.
        :param elsewhere: the number at coordinates that belong to no unit.
        :returns: shape ``(*batch, *site shape)``, of length one along all other axes of the site.
        """
        batch = numbers.shape[:-1]
        if self.outer * self.inner > 1:
            numbers = numbers[..., None, :, None].expand(*batch, self.outer, -1, self.inner)
            numbers = numbers.reshape(*batch, -1)
        if self.index is not None:
            table = self.coordinates(length, numbers.device)
            laid = numbers.new_full((*batch, length), elsewhere)
            numbers = laid.index_copy(-1, table, numbers)
        return numbers.reshape(
            *batch, *(1,) * (rank + self.dim), numbers.shape[-1], *(1,) * (-1 - self.dim)
        )

    def units(self, value: Tensor, rank: int) -> Tensor:
        """Everything in a site's tensor that belongs to each unit.

        :param value: shape ``(*batch, *site shape)``; ``dim`` counts from the right.
        :param rank: number of dimensions of the site's shape.
        :returns: shape ``(*batch, size, entries of a unit)``.
        """
        if self.index is not None:
            table = self.coordinates(value.shape[self.dim], value.device)
            value = value.index_select(self.dim, table)
        return self._units_first(value, rank).flatten(value.dim() - rank + 1)

    def from_units(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """The transpose of :meth:`units`: a site's tensor from what belongs to each unit.

        :param units: shape ``(*batch, size, entries of a unit)``.
        :param shape: shape of the site.
        :returns: shape ``(*batch, *shape)``, zero at coordinates that the group does not permute.
        """
        batch, dim = units.dim() - 2, len(shape) + self.dim
        left, right = shape[:dim], shape[dim + 1 :]
        value = units
        if math.prod(left) * self.outer > 1:  # Otherwise the units come first in the site as well.
            value = units.reshape(*units.shape[:-1], *left, self.outer, self.inner, *right)
            value = value.movedim(batch, batch + dim + 1)
        permuted = self.outer * self.inner * units.shape[-2]
        value = value.reshape(*units.shape[:-2], *left, permuted, *right)
        if self.index is None:
            return value
        table = self.coordinates(shape[dim], units.device)
        full = value.new_zeros(*units.shape[:-2], *shape)
        return full.index_copy(self.dim, table, value)

    def unit_coordinates(self, length: int) -> Tensor:
        """The coordinates of each unit along an axis of this length, shape ``(size, entries)``."""
        table = self.coordinates(length, torch.device("cpu"))
        return table.view(self.outer, -1, self.inner).movedim(1, 0).flatten(1)

    def _units_first(self, value: Tensor, rank: int) -> Tensor:
        """A view with the units as first dimension behind the batch."""
        batch, dim = value.dim() - rank, value.dim() + self.dim
        if self.outer * self.inner > 1:
            value = value.unflatten(dim, (self.outer, -1, self.inner))
            dim += 1
        if rank == 1 and self.outer * self.inner == 1:
            return value.unsqueeze(-1)
        return value if dim == batch else value.movedim(dim, batch)

    def coordinates(self, length: int, device: torch.device) -> Tensor:
        """The coordinates that belong to units, in ``(outer, size, inner)`` order."""
        index = range(length) if self.index is None else self.index
        if isinstance(index, range):
            return torch.arange(index.start, index.stop, index.step, device=device)
        return torch.tensor(self._index_array, device=device)

    @cached_property
    def _index_array(self) -> npt.NDArray[np.int64]:
        """``index`` in a form of which tensors are quickly made.

        A tuple takes a hundred times as long, and a tensor would remain what a compiler made of it.
        """
        return np.array(self.index, dtype=np.int64)

    @property
    def plain(self) -> Axis:
        """The same coordinates, without what a group does to its units there."""
        return Axis(self.dim, self.outer, self.inner, self.index)

    @property
    def of_scales(self) -> Axis:
        """The same axis of the scales of what lies along it, which never change their sign."""
        return replace(self, sign=False)


def _take(value: Tensor, index: Tensor, dim: int, rank: int) -> Tensor:
    """Select along a negative dimension of a site by an index that may carry batch dimensions."""
    if index.dim() == 1:
        return value.index_select(dim, index)
    # One selection for the whole batch: its gradient is far quicker than that of a gather.
    length = value.shape[dim]
    batch = broadcast_shapes([value.shape[:-rank], index.shape[:-1]])
    rows = index.expand(*batch, length).reshape(batch.numel(), length)
    if value.dim() > rank:
        value = value.expand(*batch, *value.shape[-rank:])
        starts = length * torch.arange(len(rows), device=rows.device).unsqueeze(-1)
        # What is out of range must not reach into another draw.
        rows = torch.where((rows >= 0) & (rows < length), rows + starts, -1)
    units = value.movedim(dim, -rank)
    rest = units.shape[units.dim() - rank + 1 :]
    num_units = math.prod(units.shape[: units.dim() - rank + 1])
    taken = units.reshape(num_units, *rest).index_select(0, rows.flatten())
    return taken.reshape(*batch, length, *rest).movedim(-rank, dim)


def broadcast_shapes(shapes: Sequence[torch.Size]) -> torch.Size:
    """As ``torch.broadcast_shapes``, which is slow where all shapes are the same, or empty."""
    largest = max(shapes, key=len)
    if all(not shape or shape == largest for shape in shapes):
        return torch.Size(largest)  # Under torch.jit.trace, part of a shape is a mere tuple.
    broadcast: torch.Size = torch.broadcast_shapes(*shapes)
    return broadcast
