"""Expressions of tensor axes: what may be permuted along each dimension of each tensor.

The coordinates of a dimension are described by an expression::

    axis  =  atom                    n coordinates that a group S_n may permute
          |  axis * axis * ...       a product: the row-major flattening of several axes
          |  axis + axis + ...       a sum: segments laid end to end
          |  axis at places          a rearrangement: the coordinates in another, constant order
          |  digit of an axis        a factor that nothing has asked for yet

``UNIT`` is the axis of a single coordinate, the empty product. Give every atom a permutation of
its coordinates; then an expression *denotes* a permutation of its own coordinates
(:func:`denotation`): products act factor by factor, sums segment by segment, and a rearrangement
permutes coordinates wherever they are.

Sizes strictly decrease from an atom to the atoms of its refinement, so every refinement ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import prod
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reason:
    """Why an axis is not permuted.

    Attributes:
        text: the cause, to be read after "is fixed:".
        source: the model's source line where the cause met the axis.
    """

    text: str
    source: str | None = None

    def __str__(self) -> str:
        return f"{self.text} ({self.source})" if self.source else self.text

    def seen_at(self, source: str | None) -> Reason:
        """The same cause, located where it spread to another axis if it has no place of its own."""
        return self if self.source else replace(self, source=source)


class Atom:
    """Coordinates that are permuted together; compared by identity.

    Attributes:
        size: how many coordinates there are, at least 2.
        refinement: what the atom turned out to be, once it is tied or split.
        frozen: why the atom is not permuted, once that is known.
        cause: why the atom was refined.
    """

    __slots__ = ("cause", "frozen", "refinement", "size")

    def __init__(self, size: int, frozen: Reason | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.refinement: AxisExpr | None = None
        self.cause: Reason | None = None

    def __repr__(self) -> str:
        return f"{'frozen' if self.frozen else 'atom'}{self.size}@{id(self) % 10007}"


@dataclass(frozen=True)
class Product:
    """Row-major flattening of several axes; the empty product is one coordinate."""

    factors: tuple[AxisExpr, ...]


@dataclass(frozen=True)
class Sum:
    """Segments laid end to end; the empty sum has no coordinate.

    Attributes:
        segments: the segments.
        cause: why they had to be told apart, if they were one axis before.
    """

    segments: tuple[AxisExpr, ...]
    cause: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Rearrangement:
    """The coordinates of an axis in another order, which is constant.

    Attributes:
        axis: the axis; an atom, a product or a sum.
        places: for each coordinate, which one of the axis it is.
    """

    axis: AxisExpr
    places: tuple[int, ...]


class Factoring(Protocol):
    """An axis that may have to be a product."""

    def factors(self) -> Sequence[AxisExpr]:
        """The axis as a product, for which it is refined at the first call."""

    def flattened(self, digits: Sequence[Digit]) -> AxisExpr | None:
        """The axis whose digits are now in another order, if these are all of them."""


@dataclass(frozen=True, eq=False)
class Digit:
    """A factor of an axis that nothing has asked for yet; until then the axis is as it was.

    Attributes:
        whole: the axis.
        position: of the factor among the others.
        size: how many coordinates there are, at least 2.
    """

    whole: Factoring
    position: int
    size: int


AxisExpr = Atom | Product | Sum | Rearrangement | Digit

UNIT = Product(())
EMPTY = Sum(())


def axis_of_size(size: int, frozen: Reason | None = None) -> AxisExpr:
    """A new axis that nothing constrains yet, or that is frozen for a reason."""
    if size == 0:
        return EMPTY
    return UNIT if size == 1 else Atom(size, frozen)


def product_of(factors: Iterable[AxisExpr]) -> AxisExpr:
    """The product in normal form: flat, without units."""
    flat: list[AxisExpr] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Product) else [factor])
    if EMPTY in flat:
        return EMPTY
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def sum_of(segments: Iterable[AxisExpr], cause: Reason | None = None) -> AxisExpr:
    """The sum in normal form: flat, without empty segments, rearranged as a whole."""
    flat: list[AxisExpr] = []
    rearrangements: list[tuple[int, Rearrangement]] = []
    for segment in segments:
        if isinstance(segment, Rearrangement):
            rearrangements.append((sum(map(size_of, flat)), segment))
        inner = segment.axis if isinstance(segment, Rearrangement) else segment
        if isinstance(inner, Sum):
            flat.extend(inner.segments)
            cause = cause or inner.cause
        else:
            flat.append(inner)
    axis = flat[0] if len(flat) == 1 else Sum(tuple(flat), cause)
    if not rearrangements:
        return axis
    places = list(range(size_of(axis)))
    for start, rearrangement in rearrangements:
        moved = [start + place for place in rearrangement.places]
        places[start : start + len(moved)] = moved
    return rearranged(axis, places)


def rearranged(axis: AxisExpr, places: Sequence[int]) -> AxisExpr:
    """The rearrangement in normal form.

    Segments of a sum are in the order of their first places, and factors of a product as they are
    flattened, where that is all there is to do.

    :param places: for each coordinate of the result, which one of the axis it is.
    """
    if isinstance(axis, Rearrangement):
        places = [axis.places[place] for place in places]
        axis = axis.axis
    if isinstance(axis, Sum):
        axis, places = _sorted_segments(axis, places)
    if all(place == position for position, place in enumerate(places)):
        return axis
    flattened = _flattened_otherwise(axis, places) if isinstance(axis, Product) else None
    return flattened or Rearrangement(axis, tuple(places))


def inverse(places: Sequence[int]) -> list[int]:
    """Where each coordinate has gone."""
    positions = [0] * len(places)
    for position, place in enumerate(places):
        positions[place] = position
    return positions


def _sorted_segments(axis: Sum, places: Sequence[int]) -> tuple[Sum, list[int]]:
    positions = inverse(places)
    bounds = list(pairwise(accumulate(map(size_of, axis.segments), initial=0)))
    first = [min(positions[start:stop]) for start, stop in bounds]
    order = sorted(range(len(first)), key=first.__getitem__)
    moved = inverse([place for k in order for place in range(*bounds[k])])
    segments = tuple(axis.segments[k] for k in order)
    return Sum(segments, axis.cause), [moved[place] for place in places]


def _flattened_otherwise(axis: Product, places: Sequence[int]) -> AxisExpr | None:
    """The product of the same factors in the order that the places have, if they have one."""
    sizes, positions = [size_of(factor) for factor in axis.factors], inverse(places)
    strides = [positions[prod(sizes[k + 1 :])] for k in range(len(sizes))]
    order = sorted(range(len(sizes)), key=strides.__getitem__, reverse=True)
    if list(places) != places_of_digits(sizes, order):
        return None
    return product_of(axis.factors[k] for k in order)


def places_of_digits(sizes: Sequence[int], order: Sequence[int]) -> list[int]:
    """Which coordinate of a row-major product comes where, if the factors change places."""
    digits = torch.arange(prod(sizes), device="cpu").view(*sizes).permute(*order)
    places: list[int] = digits.flatten().tolist()
    return places


def size_of(axis: AxisExpr) -> int:
    """Number of coordinates."""
    if isinstance(axis, (Atom, Digit)):
        return axis.size
    if isinstance(axis, Rearrangement):
        return len(axis.places)
    if isinstance(axis, Product):
        return prod(size_of(factor) for factor in axis.factors)
    return sum(size_of(segment) for segment in axis.segments)


def resolve(axis: AxisExpr) -> AxisExpr:
    """The axis in terms of atoms that are not refined any further."""
    if isinstance(axis, Atom):
        target = axis.refinement
        if target is None:
            return axis
        axis.refinement = resolve(target)
        if isinstance(target, Atom) and target.refinement is not None:
            axis.cause = target.cause
        return axis.refinement
    if isinstance(axis, Digit):
        return resolve(axis.whole.factors()[axis.position])
    if isinstance(axis, Rearrangement):
        inner = resolve(axis.axis)
        return axis if inner == axis.axis else rearranged(inner, axis.places)
    if isinstance(axis, Product):
        return product_of(resolve(factor) for factor in axis.factors)
    return sum_of(map(resolve, axis.segments), axis.cause)


def atoms_of(axis: AxisExpr) -> Iterator[Atom]:
    """The atoms of a resolved axis, from left to right, with repetitions."""
    if isinstance(axis, Atom):
        yield axis
    else:
        for part in _parts(axis):
            yield from atoms_of(part)


def _parts(axis: AxisExpr) -> Sequence[AxisExpr]:
    """What a compound axis is made of."""
    if isinstance(axis, Product):
        return axis.factors
    if isinstance(axis, Sum):
        return axis.segments
    return [axis.axis] if isinstance(axis, Rearrangement) else [resolve(axis)]


def denotation(axis: AxisExpr, permutations: Mapping[Atom, Tensor]) -> Tensor:
    """The permutation of an axis's coordinates, given permutations of its free atoms.

    :returns: shape ``(size,)``; atoms that are not in the mapping stay where they are.
    """
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return permutations.get(axis, torch.arange(axis.size, device="cpu"))
    if isinstance(axis, Rearrangement):
        places = torch.tensor(axis.places, device="cpu")
        return places.argsort()[denotation(axis.axis, permutations)[places]]
    if isinstance(axis, Product):
        moved = torch.zeros(1, dtype=torch.long, device="cpu")
        for factor in axis.factors:
            inner = denotation(factor, permutations)
            moved = (moved[:, None] * len(inner) + inner).flatten()
        return moved
    assert isinstance(axis, Sum)
    parts, offset = [torch.zeros(0, dtype=torch.long, device="cpu")], 0
    for segment in axis.segments:
        parts.append(denotation(segment, permutations) + offset)
        offset += size_of(segment)
    return torch.cat(parts)


def is_frozen(axis: AxisExpr) -> bool:
    """Whether no coordinate of the axis is permuted."""
    return all(atom.frozen is not None for atom in atoms_of(resolve(axis)))


def why_fixed(axis: AxisExpr) -> Reason | None:
    """Why an axis, or part of it, is not permuted: an atom was frozen, or one unit cut off."""
    cause: Reason | None = None
    seen: list[AxisExpr] = [axis]
    while seen:
        part = seen.pop(0)
        if not isinstance(part, Atom):
            seen.extend(_parts(part))
        elif part.frozen is not None:
            return part.frozen
        elif part.refinement is not None:
            seen.append(part.refinement)
            refined = sum_within(part.refinement)
            if refined is not None and UNIT in refined.segments:
                cause = cause or part.cause
    return cause


def sum_within(axis: AxisExpr) -> Sum | None:
    """The sum that an axis is, or is a rearrangement of."""
    inner = axis.axis if isinstance(axis, Rearrangement) else axis
    return inner if isinstance(inner, Sum) else None
