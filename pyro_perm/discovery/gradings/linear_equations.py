"""Homogeneous linear equations over a field: GF(2) for signs, the rationals for scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import permutations

from pyro_perm.discovery.permutations.expressions import Reason

LinearForm = tuple[Fraction, ...]


@dataclasses.dataclass(frozen=True)
class Field:
    """The rationals, or the integers modulo a prime, held as fractions.

    Attributes:
        characteristic: the prime, or 0 for the rationals.
    """

    characteristic: int

    def reduce(self, values: Iterable[Fraction]) -> LinearForm:
        """The elements of the field that some numbers stand for."""
        p = self.characteristic
        return tuple(value % p for value in values) if p else tuple(values)

    def minus(self, form: LinearForm, row: LinearForm, factor: Fraction) -> LinearForm:
        """A vector minus a multiple of another."""
        if not factor:
            return form
        return self.reduce(x - factor * y for x, y in zip(form, row, strict=True))

    def inverse(self, value: Fraction) -> Fraction:
        """One over an element that is not zero."""
        p = self.characteristic
        return Fraction(pow(int(value), -1, p)) if p else 1 / value


@dataclasses.dataclass
class Equations:
    """Linear forms that must be zero.

    Attributes:
        field: where the unknowns and coefficients lie.
        num_unknowns: how many unknowns there are.
        cause: what first forced an unknown to be zero.
    """

    field: Field
    num_unknowns: int
    cause: Reason | None = None
    _rows: dict[int, LinearForm] = dataclasses.field(
        default_factory=dict
    )  # leading unknown -> reduced row

    def add(self, form: LinearForm, why: Reason) -> None:
        """Demand that a linear form, one coefficient for each unknown, is zero."""
        for leading, row in self._rows.items():
            form = self.field.minus(form, row, form[leading])
        if not any(form):
            return
        leading = max(k for k, coefficient in enumerate(form) if coefficient)
        inverse = self.field.inverse(form[leading])
        form = self.field.reduce(coefficient * inverse for coefficient in form)
        for other, row in self._rows.items():
            self._rows[other] = self.field.minus(row, form, row[leading])
        self._rows[leading] = form
        if self.cause is None and any(sum(map(bool, row)) == 1 for row in self._rows.values()):
            self.cause = why

    @property
    def has_solutions(self) -> bool:
        """Whether there is any solution but zero."""
        return len(self._rows) < self.num_unknowns

    def solutions(self) -> list[LinearForm]:
        """A basis of the solutions: in each, one free unknown is one and the others are zero."""
        return [
            self.field.reduce(self._value(unknown, free) for unknown in range(self.num_unknowns))
            for free in range(self.num_unknowns)
            if free not in self._rows
        ]

    def _value(self, unknown: int, free: int) -> Fraction:
        row = self._rows.get(unknown)
        return Fraction(unknown == free) if row is None else -row[free]


def unit_form(k: int, num_unknowns: int) -> LinearForm:
    """The linear form that is the k-th unknown."""
    return tuple(Fraction(k == other) for other in range(num_unknowns))


def sparse_basis(basis: Sequence[LinearForm], field: Field) -> list[LinearForm]:
    """A basis of the same space with fewer unknowns in each vector, by differences of pairs."""
    sparse = list(basis)
    while (shorter := _shorter(sparse, field)) is not None:
        position, vector = shorter
        sparse[position] = vector
    return sparse


def _shorter(basis: Sequence[LinearForm], field: Field) -> tuple[int, LinearForm] | None:
    """A vector of a basis that another makes shorter: its position, and what it becomes."""
    for position, other in permutations(range(len(basis)), 2):
        vector, row = basis[position], basis[other]
        for x, y in zip(vector, row, strict=True):
            if x and y:
                difference = field.minus(vector, row, x * field.inverse(y))
                if sum(map(bool, difference)) < sum(map(bool, vector)):
                    return position, difference
    return None
