"""The algebra of tensor axes: what may be permuted along each dimension of each tensor.

The coordinates of a dimension are described by an expression::

    axis  =  atom                    n coordinates that a group S_n may permute
          |  axis * axis * ...       a product: the row-major flattening of several axes
          |  axis + axis + ...       a sum: segments laid end to end

``UNIT`` is the axis of a single coordinate, the empty product. Give every atom a permutation of
its coordinates; then an expression *denotes* a permutation of its own coordinates
(:func:`denotation`): products act factor by factor, sums segment by segment.

An operation of the model constrains its axes. Adding two tensors, say, makes sense under a
permutation only if both are permuted alike, so their axes are *tied* (:func:`tie`). Tying makes two
expressions denote the same permutation, whatever the atoms' permutations are. It may only shrink
the group: an atom is merged with another, *refined* into a product or a sum of smaller atoms
(``S_12`` shrinks to ``S_3 x S_4`` when the axis is viewed as ``3 * 4``), or *frozen* to the
identity with a reason. Where two layouts have no common refinement, both are frozen.

Sizes strictly decrease from an atom to the atoms of its refinement, so every refinement ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

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


AxisExpr = Atom | Product | Sum

UNIT = Product(())
EMPTY = Sum(())


class IncompatibleLayoutError(Exception):
    """Two axes of equal length have no common refinement."""


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
    """The sum in normal form: flat, without empty segments."""
    flat: list[AxisExpr] = []
    for segment in segments:
        if isinstance(segment, Sum):
            flat.extend(segment.segments)
            cause = cause or segment.cause
        else:
            flat.append(segment)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat), cause)


def size_of(axis: AxisExpr) -> int:
    """Number of coordinates."""
    if isinstance(axis, Atom):
        return axis.size
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
    if isinstance(axis, Product):
        return product_of(resolve(factor) for factor in axis.factors)
    return sum_of(map(resolve, axis.segments), axis.cause)


def atoms_of(axis: AxisExpr) -> Iterator[Atom]:
    """The atoms of a resolved axis, from left to right, with repetitions."""
    if isinstance(axis, Atom):
        yield axis
    else:
        for part in axis.factors if isinstance(axis, Product) else axis.segments:
            yield from atoms_of(part)


def denotation(axis: AxisExpr, permutations: Mapping[Atom, Tensor]) -> Tensor:
    """The permutation of an axis's coordinates, given permutations of its free atoms.

    :returns: shape ``(size,)``; atoms that are not in the mapping stay where they are.
    """
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return permutations.get(axis, torch.arange(axis.size, device="cpu"))
    if isinstance(axis, Product):
        moved = torch.zeros(1, dtype=torch.long, device="cpu")
        for factor in axis.factors:
            inner = denotation(factor, permutations)
            moved = (moved[:, None] * len(inner) + inner).flatten()
        return moved
    parts, offset = [torch.zeros(0, dtype=torch.long, device="cpu")], 0
    for segment in axis.segments:
        parts.append(denotation(segment, permutations) + offset)
        offset += size_of(segment)
    return torch.cat(parts)


def freeze(axis: AxisExpr, why: Reason) -> None:
    """Permute no coordinate of the axis. Atoms that are frozen already keep their first reason."""
    for atom in atoms_of(resolve(axis)):
        if atom.frozen is None:
            atom.frozen = why


def is_frozen(axis: AxisExpr) -> bool:
    """Whether no coordinate of the axis is permuted."""
    return all(atom.frozen is not None for atom in atoms_of(resolve(axis)))


def tie(x: AxisExpr, y: AxisExpr, why: Reason) -> None:
    """Make two axes of equal length denote the same permutation.

    :param why: recorded on atoms that have to be refined or frozen for it.
    """
    try:
        _tie(x, y, why)
    except IncompatibleLayoutError:
        freeze(x, why)
        freeze(y, why)


def split_product(axis: AxisExpr, right: int, why: Reason) -> tuple[AxisExpr, AxisExpr]:
    """Write an axis as ``left * right``, with ``right`` coordinates in the right factor.

    :raises IncompatibleLayoutError: if the axis's layout has no such refinement.
    """
    axis = resolve(axis)
    size = size_of(axis)
    if right == 1:
        return axis, UNIT
    if right == size:
        return UNIT, axis
    if right == 0 or size % right:
        raise IncompatibleLayoutError
    if isinstance(axis, Atom):
        return _refine_into_product(axis, size // right, right, why)
    if isinstance(axis, Product):
        return _split_factors(axis, right, why)
    halves = [split_product(segment, right, why) for segment in axis.segments]
    common = halves[0][1]
    for _, other in halves[1:]:
        tie(common, other, why)
    return sum_of(left for left, _ in halves), resolve(common)


def has_factor(axis: AxisExpr, right: int) -> bool:
    """Whether :func:`split_product` can write an axis as ``left * right``."""
    axis = resolve(axis)
    size = size_of(axis)
    if right in (1, size):
        return True
    if right == 0 or size % right:
        return False
    if isinstance(axis, Sum):
        return all(has_factor(segment, right) for segment in axis.segments)
    if isinstance(axis, Product):
        last, rest = axis.factors[-1], product_of(axis.factors[:-1])
        length = size_of(last)
        is_whole = right % length == 0
        return has_factor(rest, right // length) if is_whole else has_factor(last, right)
    return True


def split_sum(axis: AxisExpr, first: int, why: Reason) -> tuple[AxisExpr, AxisExpr]:
    """Write an axis as ``first + rest``, with ``first`` coordinates in the first segment."""
    axis = resolve(axis)
    size = size_of(axis)
    if first == 0:
        return EMPTY, axis
    if first == size:
        return axis, EMPTY
    if isinstance(axis, Atom):
        return _refine_into_sum(axis, first, size - first, why)
    if isinstance(axis, Product):
        return _split_copies(axis, first, why)
    before: list[AxisExpr] = []
    for position, segment in enumerate(axis.segments):
        length = size_of(segment)
        if first < length:
            left, right = split_sum(segment, first, why)
            after = axis.segments[position + 1 :]
            return sum_of([*before, left], axis.cause), sum_of([right, *after], axis.cause)
        before.append(segment)
        first -= length
    return sum_of(before, axis.cause), EMPTY


def _tie(x: AxisExpr, y: AxisExpr, why: Reason) -> None:
    x, y = resolve(x), resolve(y)
    if x == y:
        return
    if size_of(x) != size_of(y):
        raise IncompatibleLayoutError
    for one, other in ((x, y), (y, x)):
        if is_frozen(one):
            freeze(other, _first_reason(one, _cause_of(one) or why).seen_at(why.source))
            return
    if isinstance(x, Atom):
        x.refinement, x.cause = y, _cause_of(y) or why
    elif isinstance(y, Atom):
        y.refinement, y.cause = x, _cause_of(x) or why
    elif isinstance(x, Sum):
        _tie_segments(x, y, why)
    elif isinstance(y, Sum):
        _tie_segments(y, x, why)
    else:
        right = min(size_of(x.factors[-1]), size_of(y.factors[-1]))
        (x_left, x_right), (y_left, y_right) = (split_product(z, right, why) for z in (x, y))
        _tie(x_right, y_right, why)
        _tie(x_left, y_left, why)


def _tie_segments(x: Sum, y: AxisExpr, why: Reason) -> None:
    rest: AxisExpr = x
    while size_of(rest) > 0:
        rest, y = resolve(rest), resolve(y)
        heads = [z.segments[0] if isinstance(z, Sum) else z for z in (rest, y)]
        first = min(size_of(head) for head in heads)
        (head, rest), (other, y) = split_sum(rest, first, why), split_sum(y, first, why)
        _tie(head, other, why)


def _split_factors(axis: Product, right: int, why: Reason) -> tuple[AxisExpr, AxisExpr]:
    last, rest = axis.factors[-1], product_of(axis.factors[:-1])
    length = size_of(last)
    if right % length == 0:
        left, inner = split_product(rest, right // length, why)
        return left, product_of([inner, last])
    left, inner = split_product(last, right, why)
    return product_of([rest, left]), inner


def _split_copies(axis: Product, first: int, why: Reason) -> tuple[AxisExpr, AxisExpr]:
    """``n * R`` is ``R + R + ...``, ``n`` times: split between two copies, or inside one."""
    outer, copy = axis.factors[0], product_of(axis.factors[1:])
    whole, inside = divmod(first, size_of(copy))
    before, after = split_sum(outer, whole, why)
    if not inside:
        return product_of([before, copy]), product_of([after, copy])
    _, after = split_sum(after, 1, why)
    left, right = split_sum(copy, inside, why)
    copy = resolve(copy)
    return (
        sum_of([product_of([before, copy]), left]),
        sum_of([right, product_of([after, copy])]),
    )


def _refine_into_product(
    atom: Atom, left: int, right: int, why: Reason
) -> tuple[AxisExpr, AxisExpr]:
    factors = axis_of_size(left, atom.frozen), axis_of_size(right, atom.frozen)
    atom.refinement, atom.cause = Product(factors), why
    return factors


def _refine_into_sum(atom: Atom, first: int, rest: int, why: Reason) -> tuple[AxisExpr, AxisExpr]:
    segments = axis_of_size(first, atom.frozen), axis_of_size(rest, atom.frozen)
    atom.refinement, atom.cause = Sum(segments, why), why
    return segments


def _cause_of(axis: AxisExpr) -> Reason | None:
    return axis.cause if isinstance(axis, Sum) else None


def _first_reason(axis: AxisExpr, default: Reason) -> Reason:
    reasons = (atom.frozen for atom in atoms_of(axis) if atom.frozen is not None)
    return next(reasons, default)


def why_fixed(axis: AxisExpr) -> Reason | None:
    """Why an axis, or part of it, is not permuted: an atom was frozen, or one unit cut off."""
    cause: Reason | None = None
    seen: list[AxisExpr] = [axis]
    while seen:
        part = seen.pop(0)
        if isinstance(part, Product):
            seen.extend(part.factors)
        elif isinstance(part, Sum):
            seen.extend(part.segments)
        elif part.frozen is not None:
            return part.frozen
        elif part.refinement is not None:
            seen.append(part.refinement)
            if isinstance(part.refinement, Sum) and UNIT in part.refinement.segments:
                cause = cause or part.cause
    return cause
