"""Laws of the axis algebra: what tying, splitting and freezing do to denotations."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples

from pyro_perm.discovery.permutations.algebra import (
    IncompatibleLayoutError,
    freeze,
    has_factor,
    split_product,
    split_sum,
    tie,
)
from pyro_perm.discovery.permutations.expressions import (
    EMPTY,
    UNIT,
    Atom,
    AxisExpr,
    Reason,
    atoms_of,
    axis_of_size,
    denotation,
    inverse,
    is_frozen,
    places_of_digits,
    product_of,
    rearranged,
    resolve,
    size_of,
    sum_of,
    why_fixed,
)
from pyro_perm.discovery.permutations.structured_axes import axes_along

WHY = Reason("a test", "test_axes.py:1")


def random_axis(size: int, choose: random.Random, depth: int = 3) -> AxisExpr:
    """An axis built from atoms, products, sums, repeated segments and rearrangements."""
    divisors = [d for d in range(2, size) if size % d == 0]
    kinds = ["atom", "product", "sum", "repeated", "shuffled", "in any order"]
    kind = choose.choice(kinds) if depth and size > 1 else "atom"
    if kind == "in any order":
        places = choose.sample(range(size), size)
        return rearranged(random_axis(size, choose, depth - 1), places)
    if kind == "sum":
        first = choose.randrange(1, size)
        sizes = [first, size - first]
        return sum_of(random_axis(n, choose, depth - 1) for n in sizes)
    if kind == "atom" or not divisors:
        return axis_of_size(size)
    d = choose.choice(divisors)
    if kind == "shuffled":
        places = places_of_digits([d, size // d], [1, 0])
        return rearranged(random_axis(size, choose, depth - 1), places)
    if kind == "product":
        return product_of(random_axis(n, choose, depth - 1) for n in (d, size // d))
    return sum_of([random_axis(d, choose, depth - 1)] * (size // d))


def random_axes(number: int) -> st.SearchStrategy[tuple[AxisExpr, ...]]:
    """Several axes of one length."""

    def build(seed: int) -> tuple[AxisExpr, ...]:
        choose = random.Random(seed)
        size = choose.choice([2, 4, 6, 12])
        return tuple(random_axis(size, choose) for _ in range(number))

    return st.integers(0, 2**32).map(build)


AXES, PAIRS, TRIPLES = random_axes(1).map(lambda axes: axes[0]), random_axes(2), random_axes(3)

laws = settings(max_examples=examples(60))


def free_atoms(*axes: AxisExpr) -> list[Atom]:
    atoms = (atom for axis in axes for atom in atoms_of(resolve(axis)) if atom.frozen is None)
    return list(dict.fromkeys(atoms))


def random_permutations(*axes: AxisExpr) -> dict[Atom, torch.Tensor]:
    return {atom: torch.randperm(atom.size) for atom in free_atoms(*axes)}


def log_order(*axes: AxisExpr) -> float:
    return sum(math.lgamma(atom.size + 1) for atom in free_atoms(*axes))


@laws
@given(AXES)
def test_an_axis_denotes_a_permutation_of_its_coordinates(axis: AxisExpr) -> None:
    moved = denotation(axis, random_permutations(axis))
    assert moved.sort().values.tolist() == list(range(size_of(axis)))


@laws
@given(AXES)
def test_denotation_is_a_homomorphism(axis: AxisExpr) -> None:
    first, second = random_permutations(axis), random_permutations(axis)
    composed = {atom: first[atom][second[atom]] for atom in first}
    expected = denotation(axis, first)[denotation(axis, second)]
    assert torch.equal(denotation(axis, composed), expected)


@laws
@given(PAIRS)
def test_tied_axes_denote_the_same_permutation(pair: tuple[AxisExpr, AxisExpr]) -> None:
    x, y = pair
    tie(x, y, WHY)
    permutations = random_permutations(x, y)
    assert torch.equal(denotation(x, permutations), denotation(y, permutations))


@laws
@given(st.integers(0, 2**32), st.sampled_from([2, 3, 4, 6]))
def test_an_axis_has_a_factor_if_it_can_be_split(seed: int, right: int) -> None:
    axis, same = (random_axis(12, random.Random(seed)) for _ in range(2))
    try:
        split_product(axis, right, WHY)
    except IncompatibleLayoutError:
        assert not has_factor(same, right)
    else:
        assert has_factor(same, right)


@laws
@given(PAIRS)
def test_tying_is_idempotent(pair: tuple[AxisExpr, AxisExpr]) -> None:
    x, y = pair
    tie(x, y, WHY)
    before = free_atoms(x, y)
    tie(x, y, WHY)
    tie(y, x, WHY)
    assert free_atoms(x, y) == before


@laws
@given(PAIRS)
def test_tying_never_enlarges_the_group(pair: tuple[AxisExpr, AxisExpr]) -> None:
    before = log_order(*pair)
    tie(*pair, WHY)
    assert log_order(*pair) <= before + 1e-9


@laws
@given(TRIPLES)
def test_tying_is_transitive(axes: tuple[AxisExpr, AxisExpr, AxisExpr]) -> None:
    x, y, z = axes
    tie(x, y, WHY)
    tie(y, z, WHY)
    permutations = random_permutations(x, y, z)
    assert torch.equal(denotation(x, permutations), denotation(z, permutations))


@laws
@given(AXES)
def test_an_atom_becomes_what_it_is_tied_to(axis: AxisExpr) -> None:
    atom, before = axis_of_size(size_of(axis)), log_order(axis)
    tie(atom, axis, WHY)
    assert is_frozen(axis) or resolve(atom) == resolve(axis)
    assert is_frozen(atom) == is_frozen(axis)
    assert log_order(axis) == before


@laws
@given(AXES, st.data())
def test_split_sum_cuts_the_denotation(axis: AxisExpr, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size_of(axis)))
    left, right = split_sum(axis, first, WHY)
    assert (size_of(left), size_of(right)) == (first, size_of(axis) - first)
    permutations = random_permutations(axis)
    whole = denotation(axis, permutations)
    assert torch.equal(whole[:first], denotation(left, permutations))
    assert torch.equal(whole[first:], denotation(right, permutations) + first)


@laws
@given(AXES, st.data())
def test_split_product_factors_the_denotation(axis: AxisExpr, data: st.DataObject) -> None:
    size = size_of(axis)
    inner = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    try:
        left, right = split_product(axis, inner, WHY)
    except IncompatibleLayoutError:
        return
    permutations = random_permutations(axis)
    outer_moved, inner_moved = denotation(left, permutations), denotation(right, permutations)
    expected = (outer_moved[:, None] * inner + inner_moved).flatten()
    assert torch.equal(denotation(axis, permutations), expected)


@laws
@given(AXES)
def test_a_frozen_axis_denotes_the_identity(axis: AxisExpr) -> None:
    freeze(axis, WHY)
    assert is_frozen(axis)
    moved = denotation(axis, random_permutations(axis))
    assert torch.equal(moved, torch.arange(size_of(axis)))
    assert why_fixed(axis) is WHY or not list(atoms_of(resolve(axis)))


@laws
@given(PAIRS)
def test_freezing_spreads_with_its_reason(pair: tuple[AxisExpr, AxisExpr]) -> None:
    x, y = pair
    tie(x, y, WHY)
    data = Reason("tied to data")
    frozen = axis_of_size(size_of(x), data)
    was_free = not is_frozen(x)
    tie(frozen, x, WHY)
    assert is_frozen(x) and is_frozen(y)
    reason = why_fixed(y)
    if was_free and isinstance(resolve(y), Atom):
        assert reason == Reason("tied to data", "test_axes.py:1")


@laws
@given(AXES)
def test_structured_axes_move_coordinates_as_the_denotation(axis: AxisExpr) -> None:
    """The algebra and the public :class:`Axis` agree on what a permutation does."""
    length = size_of(axis)
    for atom, permutation in random_permutations(axis).items():
        moved = torch.arange(length)
        for along in axes_along(axis, atom, torch.arange(atom.size), -1):
            moved = moved[along.gather_index(permutation, length)]
        assert torch.equal(moved, denotation(axis, {atom: permutation}))


@laws
@given(AXES, st.data())
def test_a_rearrangement_moves_the_same_coordinates(axis: AxisExpr, data: st.DataObject) -> None:
    places = data.draw(st.permutations(range(size_of(axis))))
    permutations = random_permutations(axis)
    content = denotation(axis, permutations)  # of a tensor that counts its coordinates
    moved = denotation(rearranged(axis, places), permutations)
    assert torch.equal(torch.tensor(places)[moved], content[places])


@laws
@given(AXES, st.data())
def test_rearranging_back_is_the_same_axis(axis: AxisExpr, data: st.DataObject) -> None:
    places = data.draw(st.permutations(range(size_of(axis))))
    axis = resolve(axis)
    assert rearranged(rearranged(axis, places), inverse(places)) == axis


@laws
@given(st.integers(1, 12).flatmap(lambda n: st.permutations(range(n))))
def test_what_is_tied_to_its_own_rearrangement_moves_whole_cycles(places: list[int]) -> None:
    axis = axis_of_size(len(places))
    tie(axis, rearranged(axis, places), WHY)
    permutations = random_permutations(axis)
    moved = denotation(axis, permutations)
    assert torch.equal(moved[torch.tensor(places)], torch.tensor(places)[moved])
    lengths = Counter(len(cycle) for cycle in cycles_of(places))
    assert log_order(axis) == pytest.approx(sum(math.lgamma(n + 1) for n in lengths.values()))


def cycles_of(places: list[int]) -> set[frozenset[int]]:
    def cycle(start: int) -> Iterator[int]:
        place = start
        while True:
            yield place
            place = places[place]
            if place == start:
                return

    return {frozenset(cycle(start)) for start in range(len(places))}


def test_shuffled_atoms_are_cut_where_they_lie() -> None:
    first, second = axis_of_size(6), axis_of_size(6)
    shuffled = rearranged(sum_of([first, second]), places_of_digits([2, 6], [1, 0]))
    left, right = split_sum(shuffled, 6, WHY)
    assert [atom.size for atom in free_atoms(first, second)] == [3, 3, 3, 3]
    tie(left, axis_of_size(6), WHY)
    tie(right, axis_of_size(6), WHY)
    assert log_order(first, second) == 4 * math.lgamma(4)


def test_shuffles_of_whole_groups_are_products() -> None:
    group, member = axis_of_size(3), axis_of_size(4)
    shuffled = rearranged(product_of([group, member]), places_of_digits([3, 4], [1, 0]))
    assert shuffled == product_of([member, group])
    channels = axis_of_size(12)
    outer, inner = split_product(
        rearranged(channels, places_of_digits([3, 4], [1, 0])), 6, WHY
    )  # any atom can be of two rows, wherever they are
    assert [atom.size for atom in free_atoms(channels)] == [2, 6]
    assert free_atoms(outer, inner) == free_atoms(channels)


def test_normal_forms() -> None:
    a, b, c = axis_of_size(2), axis_of_size(3), axis_of_size(4)
    assert product_of([a, product_of([b, UNIT]), c]) == product_of([a, b, c])
    assert sum_of([a, sum_of([b, EMPTY]), c]) == sum_of([a, b, c])
    assert product_of([UNIT, a]) is a and sum_of([a]) is a
    assert product_of([a, EMPTY]) == EMPTY
    assert axis_of_size(1) == UNIT and axis_of_size(0) == EMPTY


def test_a_flattened_axis_is_a_block_of_places_for_each_channel() -> None:
    channels, weight = axis_of_size(5), axis_of_size(20)
    tie(product_of([channels, axis_of_size(4, WHY)]), weight, WHY)
    (along,) = axes_along(weight, free_atoms(weight)[0], torch.arange(5), -1)
    assert (along.outer, along.inner, along.index) == (1, 4, None)


def test_equal_gates_share_one_axis() -> None:
    gates, unit = axis_of_size(12), axis_of_size(4)
    tie(gates, sum_of([unit] * 3), WHY)
    (along,) = axes_along(gates, free_atoms(gates)[0], torch.arange(4), -1)
    assert (along.outer, along.inner, along.index) == (3, 1, None)


def test_layouts_without_a_common_refinement_are_frozen() -> None:
    x = product_of([axis_of_size(2), axis_of_size(3)])
    y = product_of([axis_of_size(3), axis_of_size(2)])
    tie(x, y, WHY)
    assert is_frozen(x) and is_frozen(y)
