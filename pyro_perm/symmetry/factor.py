"""One group of units: permuted, each acted on by itself, or both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.symmetry.actions import actions_of
from pyro_perm.symmetry.actions.finite import FiniteAction
from pyro_perm.symmetry.actions.unit_action import UnitAction
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.elements import (
    AnyElement,
    Element,
    as_element,
    sample_permutation,
    shortest,
    transform,
    unit_of,
)


@dataclass(frozen=True)
class Factor:
    """One group of units, and where they lie.

    It is the wreath product of what acts on each unit with the symmetric group, or without the
    latter if units stay in their places.

    Attributes:
        name: name of the group.
        size: number of units.
        axes: pairs of a site and an axis of it, whose dimension counts from the right.
    """

    name: str
    size: int
    axes: tuple[tuple[str, Axis], ...]

    @cached_property
    def permutes(self) -> bool:
        """Whether units take each other's places."""
        return self.axes[0][1].permute

    @cached_property
    def actions(self) -> tuple[UnitAction, ...]:
        """What acts on each unit by itself."""
        return actions_of([axis for _, axis in self.axes])

    @property
    def is_compact(self) -> bool:
        """Whether a density may be averaged over it."""
        return all(action.is_compact for action in self.actions)

    @property
    def log_unit_orders(self) -> float:
        """``n log |H|``, the part of the order that is due to the units' own actions, in nats."""
        return self.size * sum(action.log_order for action in self.actions)

    @property
    def log_order(self) -> float:
        """``log n! |H|^n`` in nats."""
        return (math.lgamma(self.size + 1) if self.permutes else 0.0) + self.log_unit_orders

    @property
    def log_compact_order(self) -> float:
        """``log_order`` without the actions that are not compact."""
        permutations = math.lgamma(self.size + 1) if self.permutes else 0.0
        return permutations + self.log_compact_unit_orders

    @property
    def log_compact_unit_orders(self) -> float:
        """``log_unit_orders`` without the actions that are not compact."""
        return self.size * sum(action.log_order for action in self.actions if action.is_compact)

    @property
    def order(self) -> float:
        """``n! |H|^n``: an integer, or infinite."""
        permutations = math.factorial(self.size) if self.permutes else 1
        return permutations * math.prod(action.order for action in self.actions) ** self.size

    def identity(self, device: torch.device | str | None = None) -> Tensor:
        """The element that does nothing, shape ``(n,)``."""
        return torch.arange(self.size, device=device)

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> AnyElement:
        """Independent elements, uniform where the group is compact.

        :returns: shape ``(*sample_shape, n)``.
        """
        shape = (*sample_shape, self.size)
        if not self.permutes:
            permutation = self.identity(device).expand(shape)
        else:
            permutation = sample_permutation(shape, device=device, generator=generator)
        element = Element(permutation)
        for action in self.actions:
            part = action.sample(shape, device=device, generator=generator)
            element = action.with_part(element, part)
        return shortest(element)

    def generators(self) -> Iterator[tuple[UnitAction | None, AnyElement]]:
        """A transposition, a cycle, and the generators of each action on the first unit.

        :returns: pairs of the action that moves, None for the permutations, and an element, shape
            ``(n,)``.
        """
        identity = self.identity("cpu")
        if self.permutes and self.size > 1:
            yield None, torch.cat([identity[:2].flip(0), identity[2:]])
            yield None, identity.roll(1)
        for action in self.actions:
            for generator in action.generators():
                part = action.identity((self.size,), torch.device("cpu")).clone()
                part[0] = generator
                yield action, shortest(action.with_part(Element(identity), part))

    def elements(self) -> AnyElement:
        """All elements of a finite group, shape ``(order, n)``.

        :raises ValueError: if there is no end to them.
        """
        places = permutations(range(self.size)) if self.permutes else [range(self.size)]
        element: AnyElement = torch.tensor([list(place) for place in places], device="cpu")
        for action in self.actions:
            every = torch.cartesian_prod(*[self._elements_of(action)] * self.size)
            element = _with_each(element, action, every.reshape(-1, self.size))
        return element

    def images(self) -> AnyElement:
        """Every element of ``H``, the identity first, done to all units at once.

        :returns: shape ``(|H|, n)``.
        :raises ValueError: if there is no end to them.
        """
        element: AnyElement = self.identity("cpu").unsqueeze(0)
        for action in self.actions:
            each = self._elements_of(action).unsqueeze(-1).expand(-1, self.size)
            element = _with_each(element, action, each)
        return element

    def image_motions(self) -> list[Motion]:
        """What every element of ``H`` does to all units, the identity first."""
        images = self.images()
        each = (transform(itemgetter(number), images) for number in range(images.shape[0]))
        return [self.motion(image)._replace(units=None) for image in each]

    def motion(self, element: AnyElement) -> Motion:
        """What an element does to values of sites; nothing checks it here."""
        if not self.actions:
            return Motion(element.permutation if isinstance(element, Element) else element, ())
        whole = as_element(element)
        units = unit_of(whole.permutation) if self.permutes else None
        parts = ((action, action.part_of(whole)) for action in self.actions)
        return Motion(units, tuple((action, part) for action, part in parts if part is not None))

    def _elements_of(self, action: UnitAction) -> Tensor:
        if not isinstance(action, FiniteAction):
            raise ValueError(
                f"group '{self.name}' {action.deed} its units: there is no end to its elements"
            )
        return action.elements()


class Motion(NamedTuple):
    """What an element of one group does along any axis of the group.

    Attributes:
        units: where the units of the result come from, shape ``(*batch, n)``; None if they stay.
        parts: pairs of an action and what it then does to each unit, shape ``(*batch, n)``.
    """

    units: Tensor | None
    parts: tuple[tuple[UnitAction, Tensor], ...]

    def apply(self, value: Tensor, axis: Axis, rank: int) -> Tensor:
        """Move a site along an axis.

        :param value: shape ``(*batch, *site shape)``.
        :param rank: number of dimensions of the site's shape.
        """
        if self.units is not None:
            value = axis.take(value, self.units.to(value.device), rank)
        for action, part in self.parts:
            value = action.act(value, part.to(value.device), axis, rank)
        return value


def commute(first: Factor, axis: Axis, second: Factor, other: Axis, length: int) -> bool:
    """Whether two groups along two axes of one site commute, whatever their elements."""
    if axis.dim != other.dim or axis.is_disjoint_from(other, length):
        return True
    # An entry of the result tells by its size, and its sign, where it comes from.
    probe = 1 + torch.arange(length, dtype=torch.float64, device="cpu") / (length + 1)
    axis, other = replace(axis, dim=-1), replace(other, dim=-1)
    mine, theirs = ([f.motion(g) for _, g in f.generators()] for f in (first, second))
    return all(
        torch.allclose(
            x.apply(y.apply(probe, other, 1), axis, 1),
            y.apply(x.apply(probe, axis, 1), other, 1),
            rtol=1e-9,
            atol=0,
        )
        for x in mine
        for y in theirs
    )


def num_units(group: str, element: AnyElement) -> int:
    """How many units an element is of.

    :raises TypeError: if it is no tensor of integers.
    """
    permutation = element.permutation if isinstance(element, Element) else element
    if not isinstance(permutation, Tensor) or permutation.dtype not in (torch.int32, torch.int64):
        kind = getattr(permutation, "dtype", type(permutation).__name__)
        raise TypeError(
            f"group '{group}': an element is a tensor of integers, the units' numbers, but this is "
            f"a {kind}: give torch.tensor([1, 0, 2]), or what symmetry.sample() returns"
        )
    return permutation.shape[-1]


def motion_of(factor: Factor, element: AnyElement) -> Motion:
    """What an element does, which must be a permutation: a device would abort at others, later.

    :raises ValueError: naming the group.
    """
    permutation, size = as_element(element).permutation, element.shape[-1]
    signed = any(action.is_written_as_sign for action in factor.actions)
    first, last = -size if signed else 0, size - 1
    low, high = (bound.item() for bound in permutation.aminmax()) if size else (0, -1)
    if low < first or high > last:
        raise ValueError(
            f"group '{factor.name}': the entries of a permutation lie between {first} and {last} "
            f"here, but this one has some from {low} to {high}: number the units from 0"
        )
    in_place = torch.arange(size, device=permutation.device)
    if (unit_of(permutation).sort(-1).values != in_place).any():
        raise ValueError(
            f"group '{factor.name}': an element takes every unit once, but this one takes some "
            "twice and leaves others out"
        )
    if not factor.permutes and (unit_of(permutation) != in_place).any():
        raise ValueError(
            f"group '{factor.name}' leaves its units in place (permute=False), but this element "
            "does not: number the units in order, ~j for minus unit j"
        )
    return factor.motion(element)


def _with_each(element: AnyElement, action: UnitAction, parts: Tensor) -> AnyElement:
    """All combinations of elements, shape ``(k, n)``, and parts, ``(m, n)``: shape ``(m k, n)``."""
    shape = (len(parts), *element.shape)
    every = as_element(transform(lambda tensor: tensor.expand(shape), element))
    combined = action.with_part(every, parts.unsqueeze(1).expand(shape))
    return transform(lambda tensor: tensor.flatten(0, 1), shortest(combined))
