"""What may happen to a unit beside being permuted, one kind of action a file.

A kind of action is a group ``H``: flips of a unit's sign, say. Every unit has its own element of
``H``, and so the group is the wreath product of ``H`` with the symmetric group, of order
``n! |H|^n``. An axis says how ``H`` acts on what lies along it, by its *degree*: not at all where
that is zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_perm.symmetry.actions.orbits import Orbits, Part
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.elements import Element


class UnitAction(ABC):
    """A group ``H`` that acts on each unit. Actions of one kind on one group of units are equal.

    Elements of ``H`` are tensors with one entry a unit. Several actions on the same units commute.
    A new kind is a subclass, listed in ``pyro_perm.symmetry.actions.KINDS``; where ``H`` is finite,
    :class:`~pyro_perm.symmetry.actions.finite.FiniteAction` knows most of it.

    Attributes:
        name: what the kind is called, in the name of the site that holds its part of an element.
        verb: what it does to a unit.
        deed: the same, as in "the group ... its units".
        legend: how a summary marks the axes with a degree, and what that means.
        is_written_as_sign: whether its part of an element is the signs of the permutation.
    """

    name: ClassVar[str]
    verb: ClassVar[str]
    deed: ClassVar[str]
    legend: ClassVar[str]
    is_written_as_sign: ClassVar[bool] = False

    @classmethod
    def of(cls, axes: Iterable[Axis]) -> UnitAction | None:
        """The action that a group's axes ask for, or None if they have no degree."""
        action = cls()
        return action if any(action.degree(axis) for axis in axes) else None

    @abstractmethod
    def degree(self, axis: Axis) -> int:
        """How it acts on the entries along an axis; zero where it leaves them alone."""

    @abstractmethod
    def mark(self, axis: Axis) -> str:
        """How a summary marks an axis."""

    @property
    @abstractmethod
    def order(self) -> float:
        """``|H|``: an integer, or infinite where there is no end to its elements."""

    @property
    def log_order(self) -> float:
        """``log |H|`` in nats."""
        return math.log(self.order)

    @property
    def is_compact(self) -> bool:
        """Whether it has uniform elements, over which a density may be averaged."""
        return math.isfinite(self.order)

    @property
    @abstractmethod
    def support(self) -> Constraint:
        """What holds of the elements of ``H``."""

    @abstractmethod
    def identity(self, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """The element that does nothing, shape ``shape``."""

    @abstractmethod
    def sample(
        self,
        shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Independent elements, uniform where ``H`` is compact, shape ``shape``."""

    @abstractmethod
    def generators(self) -> Tensor:
        """Elements that generate ``H``, or tell whether all of it is a symmetry; shape ``(k,)``."""

    @abstractmethod
    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The element that acts like ``second``, then ``first``."""

    @abstractmethod
    def inverse(self, element: Tensor) -> Tensor:
        """The element that undoes another."""

    @abstractmethod
    def act(self, value: Tensor, element: Tensor, axis: Axis, rank: int) -> Tensor:
        """Act on a site along an axis.

        :param value: shape ``(*batch, *site shape)``.
        :param element: what happens to each unit, shape ``(*batch, n)``.
        :param axis: its dimension counts from the right.
        :param rank: number of dimensions of the site's shape.
        """

    @abstractmethod
    def orbits(self, parts: Sequence[Part], rest: Orbits) -> Orbits:
        """Its action on units whose entries are those of some parts, side by side.

        :param rest: what the further actions on these units do to them.
        :raises ValueError: if densities cannot be summed over it.
        """

    def refusal(self, support: Constraint) -> str | None:
        """Why it cannot act on values with this support, if so, and what to do."""
        return None

    def invariant(self, entries: Tensor, axis: Axis) -> Tensor:
        """What no element changes of entries along an axis, but their order within a unit."""
        return entries

    def part_of(self, element: Element) -> Tensor | None:
        """What an element does to the units, by this action; None for nothing."""
        return element.parts.get(self)

    def with_part(self, element: Element, part: Tensor) -> Element:
        """The element, with a part for this action."""
        return replace(element, parts={**element.parts, self: part})
