"""Linear equations over GF(2) for the signs of tensors.

Flip one unit of a group. Which of the group's axes flip is unknown: there is one unknown ``x_k`` in
GF(2) for each axis. Every entry of every tensor of the model is then multiplied by
``(-1)^(sum_k x_k)`` over some set of axes, its *parity*, held as the bits of an integer. Entries
that are zero have any parity.

Products add parities, odd functions keep and even functions forget them. Terms of a sum must have
one parity, and what is neither odd nor even must not change sign at all: these are equations for
the ``x_k``, and any solution but zero is a symmetry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_perm.discovery.permutations.algebra import Reason

INVARIANT = 0
ZERO = -1  # The entry is zero, which has any parity.
MAX_UNKNOWNS = 62


@dataclass
class Equations:
    """Homogeneous linear equations over GF(2), each a set of unknowns that must sum to zero.

    Attributes:
        num_unknowns: how many unknowns there are.
        cause: what first forced an unknown to be zero.
    """

    num_unknowns: int
    cause: Reason | None = None
    _rows: dict[int, int] = field(default_factory=dict)  # leading unknown -> reduced equation

    def add(self, equation: int, why: Reason) -> None:
        """Demand that a set of unknowns, given as bits, sums to zero."""
        for leading, row in self._rows.items():
            if equation >> leading & 1:
                equation ^= row
        if not equation:
            return
        leading = equation.bit_length() - 1
        for other, row in self._rows.items():
            if row >> leading & 1:
                self._rows[other] = row ^ equation
        self._rows[leading] = equation
        if self.cause is None and any(row.bit_count() == 1 for row in self._rows.values()):
            self.cause = why

    def solutions(self) -> list[int]:
        """A basis of the solutions, each as the bits of the unknowns that are one."""
        free = (unknown for unknown in range(self.num_unknowns) if unknown not in self._rows)
        return [
            1 << unknown
            | sum(1 << leading for leading, row in self._rows.items() if row >> unknown & 1)
            for unknown in free
        ]


@dataclass(frozen=True)
class ParityRules:
    """What a rule can demand of parities, while it describes one operation.

    Attributes:
        equations: collects the demands.
        operation: the operation's name, for reasons.
        source: the model's source line.
        result_shapes: the shapes of the operation's results.
    """

    equations: Equations
    operation: str
    source: str | None
    result_shapes: tuple[tuple[int, ...], ...]

    def refuse(self, parity: Tensor) -> None:
        """Demand that nothing changes its sign."""
        why = Reason(f"{self.operation} is neither odd nor even", self.source)
        for equation in _distinct(parity[parity != ZERO]):
            self.equations.add(equation, why)

    def common(self, parity: Tensor, dims: int | Iterable[int]) -> Tensor:
        """Demand one parity of all entries along some dimensions, as summing them does.

        :returns: that parity, the dimensions kept with length one.
        """
        why = Reason(f"{self.operation} mixes what flips with what does not", self.source)
        for dim in [dims] if isinstance(dims, int) else dims:
            if not parity.dim():
                break
            counts = parity != ZERO
            first = parity.gather(dim, counts.to(torch.int8).argmax(dim, keepdim=True))
            for equation in _distinct((parity ^ first)[counts]):
                self.equations.add(equation, why)
            parity = first
        return parity

    def together(self, *parities: Tensor) -> Tensor:
        """Demand one parity wherever the entries of several tensors meet."""
        return self.common(torch.stack(torch.broadcast_tensors(*parities)), 0).squeeze(0)


def product(x: Tensor, y: Tensor) -> Tensor:
    """The parity of a product, entry by entry."""
    return torch.where((x == ZERO) | (y == ZERO), ZERO, x ^ y)


def _distinct(values: Tensor) -> list[int]:
    found: list[int] = values.unique().tolist()
    return [value for value in found if value != INVARIANT]
