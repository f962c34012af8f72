"""Null spaces of linear equations, over GF(2) by enumeration and over the rationals by rank."""

from __future__ import annotations

import itertools
from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples

from pyro_perm.discovery.gradings.linear_equations import (
    Equations,
    Field,
    LinearForm,
    sparse_basis,
)
from pyro_perm.discovery.permutations.expressions import Reason

NUM_UNKNOWNS = 5


def equations(characteristic: int, rows: list[list[int]]) -> Equations:
    field = Field(characteristic)
    found = Equations(field, NUM_UNKNOWNS)
    for row in rows:
        found.add(field.reduce(map(Fraction, row)), Reason("a test"))
    return found


def rows_of(low: int, high: int) -> st.SearchStrategy[list[list[int]]]:
    row = st.lists(st.integers(low, high), min_size=NUM_UNKNOWNS, max_size=NUM_UNKNOWNS)
    return st.lists(row, max_size=7)


@settings(derandomize=True, deadline=None, max_examples=examples(40))
@given(rows_of(0, 1))
def test_solutions_modulo_two_are_the_null_space(rows: list[list[int]]) -> None:
    found = equations(2, rows)
    null_space = {
        x
        for x in itertools.product(range(2), repeat=NUM_UNKNOWNS)
        if all(sum(a * b for a, b in zip(x, row, strict=True)) % 2 == 0 for row in rows)
    }
    spanned: set[LinearForm] = {(Fraction(0),) * NUM_UNKNOWNS}
    for solution in found.solutions():
        both = [found.field.reduce(map(sum, zip(x, solution, strict=True))) for x in spanned]
        spanned |= set(both)
    assert spanned == null_space
    assert len(null_space) == 2 ** len(found.solutions())
    assert found.has_solutions == (len(null_space) > 1)


@settings(derandomize=True, deadline=None, max_examples=examples(40))
@given(rows_of(-3, 3))
def test_rational_solutions_are_a_basis_of_the_null_space(rows: list[list[int]]) -> None:
    found = equations(0, rows)
    basis = found.solutions()
    matrix = torch.tensor(rows, dtype=torch.float64).view(-1, NUM_UNKNOWNS)
    assert len(basis) == NUM_UNKNOWNS - int(torch.linalg.matrix_rank(matrix))
    assert found.has_solutions == bool(basis)
    for solution in basis:
        for row in rows:
            assert sum(a * b for a, b in zip(solution, row, strict=True)) == 0
    if basis:
        vectors = torch.tensor([[float(x) for x in solution] for solution in basis])
        assert int(torch.linalg.matrix_rank(vectors)) == len(basis)


def test_the_cause_is_what_first_forced_an_unknown_to_be_zero() -> None:
    found = Equations(Field(0), 3)
    for row, why in [((1, -1, 0), "ties"), ((2, 0, 0), "forces"), ((0, 0, 1), "comes too late")]:
        found.add(tuple(map(Fraction, row)), Reason(why))
    assert found.cause == Reason("forces")
    assert not found.has_solutions


@settings(derandomize=True, deadline=None, max_examples=examples(100))
@given(rows_of(-2, 2), st.sampled_from([0, 2]))
def test_a_sparse_basis_spans_the_same_space_with_fewer_unknowns(
    rows: list[list[int]], characteristic: int
) -> None:
    found = equations(characteristic, rows)
    basis = found.solutions()
    sparse = sparse_basis(basis, found.field)
    assert len(sparse) == len(basis)
    assert [sum(map(bool, x)) for x in sparse] <= [sum(map(bool, x)) for x in basis]
    for some, others in ((sparse, basis), (basis, sparse)):
        equal = Equations(found.field, len(basis))  # No combination of a basis is zero.
        for column in zip(*some, strict=True):
            equal.add(column, Reason("a test"))
        assert not equal.has_solutions
        for vector in others:
            combined = Equations(found.field, len(basis) + 1)
            for column in zip(*some, vector, strict=True):
                combined.add(column, Reason("a test"))
            assert combined.has_solutions
