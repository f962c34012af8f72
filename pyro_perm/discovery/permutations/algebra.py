"""The algebra of tensor axes: tying, cutting and freezing them.

An operation of the model constrains its axes. Adding two tensors, say, makes sense under a
permutation only if both are permuted alike, so their axes are *tied* (:func:`tie`). Tying makes two
expressions denote the same permutation, whatever the atoms' permutations are. It may only shrink
the group: an atom is merged with another, *refined* into a product or a sum of smaller atoms
(``S_12`` shrinks to ``S_3 x S_4`` when the axis is viewed as ``3 * 4``), or *frozen* to the
identity with a reason. Where two layouts have no common refinement, both are frozen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pyro_perm.discovery.permutations.expressions import (
    EMPTY,
    UNIT,
    Atom,
    AxisExpr,
    Product,
    Rearrangement,
    Reason,
    Sum,
    atoms_of,
    axis_of_size,
    inverse,
    is_frozen,
    places_of_digits,
    product_of,
    rearranged,
    resolve,
    size_of,
    sum_of,
    sum_within,
)


class IncompatibleLayoutError(Exception):
    """Two axes of equal length have no common refinement."""


def freeze(axis: AxisExpr, why: Reason) -> None:
    """Permute no coordinate of the axis. Atoms that are frozen already keep their first reason."""
    for atom in atoms_of(resolve(axis)):
        if atom.frozen is None:
            atom.frozen = why


def tie(x: AxisExpr, y: AxisExpr, why: Reason) -> None:
    """Make two axes of equal length denote the same permutation.

    :param why: recorded on atoms that have to be refined or frozen for it.
    """
    if x is y:  # So no digit is asked for.
        return
    try:
        _tie(x, y, why)
    except IncompatibleLayoutError:
        freeze(x, why)
        freeze(y, why)


def factor(axis: AxisExpr, sizes: Sequence[int], why: Reason) -> list[AxisExpr]:
    """Write an axis as a product of factors of given sizes, or freeze it where it is none."""
    whole, factors = axis, list[AxisExpr]()
    for size in reversed(sizes):
        try:
            axis, right = split_product(axis, size, why)
        except IncompatibleLayoutError:
            freeze(whole, why)
            return [axis_of_size(size, why) for size in sizes]
        factors.insert(0, right)
    return factors


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
    if isinstance(axis, Rearrangement):
        return _split_rearrangement(axis, right, why)
    if isinstance(axis, Product):
        return _split_factors(axis, right, why)
    assert isinstance(axis, Sum)
    halves = [split_product(segment, right, why) for segment in axis.segments]
    common = halves[0][1]
    for _, other in halves[1:]:
        tie(common, other, why)
    return sum_of(left for left, _ in halves), resolve(common)


def has_factor(axis: AxisExpr, right: int) -> bool:
    """Whether :func:`split_product` can write an axis as ``left * right``."""
    try:
        split_product(_copy(resolve(axis), {}), right, Reason("tried"))
    except IncompatibleLayoutError:
        return False
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
    if not isinstance(axis, Sum):
        return _divide(axis, [place < first for place in range(size)], why)
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
        _refine(x, y, why)
    elif isinstance(y, Atom):
        _refine(y, x, why)
    elif isinstance(x, Sum):
        _tie_segments(x, y, why)
    elif isinstance(y, Sum):
        _tie_segments(y, x, why)
    elif isinstance(x, Rearrangement) and not isinstance(x.axis, Product):
        _tie(x.axis, rearranged(y, inverse(x.places)), why)
    elif isinstance(y, Rearrangement) and not isinstance(y.axis, Product):
        _tie(y.axis, rearranged(x, inverse(y.places)), why)
    elif isinstance(x, Rearrangement) and isinstance(y, Rearrangement):
        _tie(x.axis, rearranged(y, inverse(x.places)), why)
    else:
        right = min(size_of(z.factors[-1]) for z in (x, y) if isinstance(z, Product))
        (x_left, x_right), (y_left, y_right) = (split_product(z, right, why) for z in (x, y))
        _tie(x_right, y_right, why)
        _tie(x_left, y_left, why)


def _refine(atom: Atom, axis: AxisExpr, why: Reason) -> None:
    """An atom becomes what it is tied to; if that is itself in another order, cycles of one length.

    What commutes with a permutation moves its cycles as wholes.
    """
    if isinstance(axis, Rearrangement) and axis.axis is atom:
        axis = _movable_cycles(axis.places, why)
    atom.refinement, atom.cause = axis, _cause_of(axis) or why


def _movable_cycles(places: Sequence[int], why: Reason) -> AxisExpr:
    cycles: list[list[int]] = []
    unseen = dict.fromkeys(range(len(places)))
    while unseen:
        place, cycle = next(iter(unseen)), list[int]()
        while place in unseen:
            del unseen[place]
            cycle.append(place)
            place = places[place]
        cycles.append(cycle)
    cycles.sort(key=len)
    numbers = Counter(map(len, cycles))
    within = {length: axis_of_size(length, why) for length in numbers}
    rows = [product_of([axis_of_size(n), within[length]]) for length, n in numbers.items()]
    return rearranged(sum_of(rows, why), inverse([place for cycle in cycles for place in cycle]))


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


def _split_rearrangement(axis: Rearrangement, right: int, why: Reason) -> tuple[AxisExpr, AxisExpr]:
    size, inner = len(axis.places), axis.axis
    if isinstance(inner, Atom):
        factors = tuple(axis_of_size(n, inner.frozen) for n in (size // right, right))
        inner.refinement = rearranged(Product(factors), inverse(axis.places))
        inner.cause = why
        return factors[0], factors[1]
    columns = axis.places[1]  # of a matrix that is read by columns
    rows = size // max(columns, 1)
    if list(axis.places) != places_of_digits([rows, columns], [1, 0]):
        raise IncompatibleLayoutError
    row, column = split_product(inner, columns, why)
    return split_product(product_of([column, row]), right, why)


def _divide(axis: AxisExpr, is_first: Sequence[bool], why: Reason) -> tuple[AxisExpr, AxisExpr]:
    """An axis of some of the coordinates, and one of the others, in the order that they have."""
    axis = resolve(axis)
    if all(is_first):
        return axis, EMPTY
    if not any(is_first):
        return EMPTY, axis
    if isinstance(axis, Atom):
        return _refine_into_parts(axis, is_first, why)
    if isinstance(axis, Sum):
        return _divide_segments(axis, is_first, why)
    if isinstance(axis, Product):
        return _divide_rows(axis, is_first, why)
    assert isinstance(axis, Rearrangement)
    inner = [is_first[position] for position in inverse(axis.places)]
    first, rest = _divide(axis.axis, inner, why)
    chosen = [place for place, is_in in zip(axis.places, is_first, strict=True) if is_in]
    others = [place for place, is_in in zip(axis.places, is_first, strict=True) if not is_in]
    return rearranged(first, _ranks(chosen)), rearranged(rest, _ranks(others))


def _order(keys: Sequence[int]) -> list[int]:
    return sorted(range(len(keys)), key=keys.__getitem__)


def _ranks(keys: Sequence[int]) -> list[int]:
    return inverse(_order(keys))


def _divide_segments(axis: Sum, is_first: Sequence[bool], why: Reason) -> tuple[AxisExpr, AxisExpr]:
    parts, start = [], 0
    for segment in axis.segments:
        stop = start + size_of(segment)
        parts.append(_divide(segment, is_first[start:stop], why))
        start = stop
    first, rest = zip(*parts, strict=True)
    return sum_of(first, axis.cause), sum_of(rest, axis.cause)


def _divide_rows(axis: Product, is_first: Sequence[bool], why: Reason) -> tuple[AxisExpr, AxisExpr]:
    """``n * R`` is ``n`` rows: those alike are divided alike, and told apart from the others."""
    outer, row = axis.factors[0], product_of(axis.factors[1:])
    num, length = size_of(outer), size_of(row)
    patterns = [tuple(is_first[i * length : (i + 1) * length]) for i in range(num)]
    kinds = dict.fromkeys(patterns)
    rows = {}
    left, remaining = outer, list(range(num))
    for kind in kinds:
        rows[kind], left = _divide(left, [patterns[i] == kind for i in remaining], why)
        remaining = [i for i in remaining if patterns[i] != kind]
    divided = {kind: _divide(row, kind, why) for kind in kinds}
    halves = []
    for half, wanted in enumerate((True, False)):
        keys = [
            i * length + j
            for kind in kinds
            for i in range(num)
            if patterns[i] == kind
            for j in range(length)
            if kind[j] == wanted
        ]
        parts = [product_of([rows[kind], divided[kind][half]]) for kind in kinds]
        halves.append(rearranged(sum_of(parts), _order(keys)))
    return halves[0], halves[1]


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


def _refine_into_parts(
    atom: Atom, is_first: Sequence[bool], why: Reason
) -> tuple[AxisExpr, AxisExpr]:
    number = sum(is_first)
    parts = axis_of_size(number, atom.frozen), axis_of_size(atom.size - number, atom.frozen)
    order = sorted(range(atom.size), key=lambda place: not is_first[place])
    atom.refinement, atom.cause = rearranged(Sum(parts, why), inverse(order)), why
    return parts


def _copy(axis: AxisExpr, copies: dict[Atom, Atom]) -> AxisExpr:
    """The same axis of other atoms."""
    if isinstance(axis, Atom):
        return copies.setdefault(axis, Atom(axis.size, axis.frozen))
    if isinstance(axis, Rearrangement):
        return Rearrangement(_copy(axis.axis, copies), axis.places)
    if isinstance(axis, Product):
        return Product(tuple(_copy(factor, copies) for factor in axis.factors))
    assert isinstance(axis, Sum)
    return Sum(tuple(_copy(segment, copies) for segment in axis.segments), axis.cause)


def _cause_of(axis: AxisExpr) -> Reason | None:
    inner = sum_within(axis)
    return inner.cause if inner else None


def _first_reason(axis: AxisExpr, default: Reason) -> Reason:
    reasons = (atom.frozen for atom in atoms_of(axis) if atom.frozen is not None)
    return next(reasons, default)
