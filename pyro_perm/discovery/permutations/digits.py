"""Axes that are reshaped, and whose factors come together again, in any order.

Coordinates of an axis of ``g * n`` entries are numbers of two digits. A shuffle of channels views
the axis as ``(g, n)``, transposes it and flattens it: each channel stays what it was, in another
place, so that nothing need be permuted by groups. Only once something else meets a digit must the
axis be a product of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod

from pyro_perm.discovery.permutations.algebra import factor, tie
from pyro_perm.discovery.permutations.expressions import (
    UNIT,
    AxisExpr,
    Digit,
    Reason,
    axis_of_size,
    is_frozen,
    places_of_digits,
    product_of,
    rearranged,
    resolve,
    size_of,
    sum_of,
)


class Digits:
    """The digits of an axis, from the left.

    :param axis: the axis.
    :param sizes: how many values each digit has.
    :param why: recorded on atoms that have to be refined or frozen if a digit is asked for.
    """

    def __init__(self, axis: AxisExpr, sizes: Sequence[int], why: Reason) -> None:
        self._axis, self._sizes, self._why = axis, sizes, why
        self._factors: list[AxisExpr] | None = None

    def factors(self) -> list[AxisExpr]:
        """The axis as a product, for which it is refined at the first call."""
        if self._factors is None:
            self._factors = factor(self._axis, self._sizes, self._why)
        return self._factors

    def axes(self) -> list[AxisExpr]:
        """One axis a digit, none of them asked for yet."""
        if prod(self._sizes) < 2 or is_frozen(self._axis):
            return self.factors()
        return [
            Digit(self, position, size) if size > 1 else UNIT
            for position, size in enumerate(self._sizes)
        ]

    def flattened(self, digits: Sequence[Digit]) -> AxisExpr | None:
        """The axis whose digits are now in another order, if these are all of them."""
        ones = [position for position, size in enumerate(self._sizes) if size == 1]
        order = [*ones, *(digit.position for digit in digits)]
        if sorted(order) != list(range(len(self._sizes))):
            return None
        return rearranged(resolve(self._axis), places_of_digits(self._sizes, order))


class Stack:
    """Tensors side by side, each with its own axis along one dimension.

    The tensor that joins them has two digits: which one it is, and the coordinate there.

    :param rows: their axes, of one length.
    :param joined: why none changes places with another.
    :param tied: why all are permuted alike once a digit is asked for.
    """

    def __init__(self, rows: Sequence[AxisExpr], joined: Reason, tied: Reason) -> None:
        self.rows, self._joined, self._tied = rows, joined, tied

    def factors(self) -> list[AxisExpr]:
        """The number of the tensor, and the coordinate in all of them."""
        first, *others = self.rows
        for other in others:
            tie(first, other, self._tied)
        return [axis_of_size(len(self.rows), self._joined), first]

    @property
    def _sizes(self) -> tuple[int, int]:
        return len(self.rows), size_of(self.rows[0])

    def axes(self) -> list[AxisExpr]:
        """The two digits, none of them asked for yet."""
        if len(self.rows) == 1:
            return [UNIT, self.rows[0]]
        return [Digit(self, position, size) for position, size in enumerate(self._sizes)]

    def flattened(self, digits: Sequence[Digit]) -> AxisExpr | None:
        """The tensors' axes end to end, or entry by entry."""
        order = [digit.position for digit in digits]
        if sorted(order) != [0, 1]:
            return None
        return rearranged(sum_of(map(resolve, self.rows)), places_of_digits(self._sizes, order))

    def some(self, rows: slice) -> Stack:
        """Some of the tensors."""
        return Stack(self.rows[rows], self._joined, self._tied)

    def replaced(self, axes: Sequence[AxisExpr], other: Sequence[AxisExpr]) -> list[AxisExpr]:
        """Axes with others in place of the two digits."""
        return [
            other[axis.position] if isinstance(axis, Digit) and axis.whole is self else axis
            for axis in axes
        ]


def stack_along(axes: Sequence[AxisExpr], dim: int) -> Stack | None:
    """What was stacked along a dimension, if that is so."""
    axis = axes[dim]
    if isinstance(axis, Digit) and isinstance(axis.whole, Stack) and axis.position == 0:
        return axis.whole
    return None


def unflatten(axis: AxisExpr, sizes: Sequence[int], why: Reason) -> list[AxisExpr]:
    """The digits of an axis, or the axis itself where it has only one."""
    if len(sizes) == 1:
        return [axis]
    return Digits(axis, sizes, why).axes()


def flatten(axes: Sequence[AxisExpr]) -> AxisExpr:
    """The row-major flattening of axes, digits of one axis among them."""
    factors: list[AxisExpr] = []
    for whole, run in groupby(axes, lambda axis: axis.whole if isinstance(axis, Digit) else None):
        parts = list(run)
        digits = [part for part in parts if isinstance(part, Digit)]
        flattened = whole.flattened(digits) if whole is not None else None
        factors += parts if flattened is None else [flattened]
    return product_of(map(settled, factors))


def settled(axis: AxisExpr) -> AxisExpr:
    """The axis; a digit is asked for."""
    return resolve(axis) if isinstance(axis, Digit) else axis
