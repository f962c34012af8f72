"""The degrees of a tensor's entries: by what they are multiplied when a unit is acted on.

Act on one unit of a group: multiply its entries along the group's k-th axis by ``c^(x_k)``. For
signs ``c`` is -1 and the unknown ``x_k`` lies in GF(2); for scales ``c`` is any positive number and
``x_k`` is rational. Every entry of every tensor of the model is then multiplied by ``c`` to the
power of a linear form in the unknowns, its *degree*. Entries that are zero have any degree.

Products add degrees, and terms of a sum must have one degree, which is an equation for the
unknowns. A tensor of degrees holds integers that number the linear forms, so that operations which
only move entries can be carried out on it.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.linear_equations import Field, LinearForm, unit_form

INVARIANT = 0
ANY = -1  # What the action leaves alone whatever its degree is, as it does zero.


class DegreeTable:
    """Numbers the linear forms that occur, in the order of their appearance; zero comes first.

    :param field: where the unknowns lie.
    :param num_unknowns: how many unknowns there are.
    """

    def __init__(self, field: Field, num_unknowns: int) -> None:
        self._field, self._num_unknowns = field, num_unknowns
        self._forms: list[LinearForm] = []
        self._numbers: dict[LinearForm, int] = {}
        self._number((Fraction(0),) * num_unknowns)

    def unknown(self, k: int) -> int:
        """The number of the degree that is the k-th unknown."""
        return self._number(unit_form(k, self._num_unknowns))

    def difference(self, first: int, second: int) -> LinearForm:
        """By how much two degrees differ."""
        return self._combined(self._forms[first], self._forms[second], Fraction(-1))

    def multiple(self, degrees: Tensor, factor: Fraction) -> Tensor:
        """The degrees of powers; a power of zero is zero only if the exponent is positive."""
        at_zero = ANY if factor > 0 else INVARIANT

        def of(degree: int) -> int:
            return at_zero if degree == ANY else self._number(self._times(degree, factor))

        return _looked_up(of, degrees)

    def sum(self, x: Tensor, y: Tensor) -> Tensor:
        """The degrees of products, entry by entry; shapes broadcast."""
        if not bool(y.any()):
            return x.expand(torch.broadcast_shapes(x.shape, y.shape))

        def of(first: int, second: int) -> int:
            if ANY in (first, second):
                return ANY
            forms = self._forms[first], self._forms[second]
            return self._number(self._combined(*forms, Fraction(1)))

        return _looked_up(of, x, y)

    def _times(self, degree: int, factor: Fraction) -> LinearForm:
        return self._field.reduce(factor * x for x in self._forms[degree])

    def _combined(self, x: LinearForm, y: LinearForm, factor: Fraction) -> LinearForm:
        return self._field.reduce(a + factor * b for a, b in zip(x, y, strict=True))

    def _number(self, form: LinearForm) -> int:
        number = self._numbers.setdefault(form, len(self._forms))
        if number == len(self._forms):
            self._forms.append(form)
        return number


def _looked_up(of: Callable[..., int], *degrees: Tensor) -> Tensor:
    """A function of degrees, called once for each combination of those that occur."""
    present = [_present(each) for each in degrees]
    table = torch.full([int(each[-1]) + 2 for each in present], INVARIANT, device="cpu")
    for combination in torch.cartesian_prod(*present).view(-1, len(present)).tolist():
        table[tuple(degree + 1 for degree in combination)] = of(*combination)
    found: Tensor = table[tuple(each + 1 for each in degrees)]
    return found


def _present(degrees: Tensor) -> Tensor:
    """The degrees that occur, in order; INVARIANT if there are no entries."""
    if not degrees.numel():
        return torch.tensor([INVARIANT], device="cpu")
    return torch.bincount(degrees.flatten() + 1).nonzero().flatten() - 1
