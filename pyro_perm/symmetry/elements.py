"""Elements of the groups of units, and what they do to each other.

The units of a group take each other's places, and a group ``H`` may act on each of them on the way:
the wreath product of ``H`` with the symmetric group. Unit ``i`` of ``g . w`` is ``h_i`` applied to
unit ``pi(i)`` of ``w``.

Permutations and signs are written as one tensor of ``n`` integers: ``g[i] = j`` makes unit ``i`` of
the result unit ``j`` of the argument, and ``g[i] = ~j``, which is ``-1 - j``, makes it minus that
unit. That is the hyperoctahedral group ``B_n``, of order ``n! 2^n``; without negative entries it is
an ordinary permutation, so that ``S_n`` is a subgroup with the same laws. Where other actions have
a part in an element, it is an :class:`Element`; the tensor alone stands for one without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor


class UnitLaw(Protocol):
    """The law of a group that acts on each unit; its elements are tensors with one entry a unit."""

    def identity(self, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """The element that does nothing, shape ``shape``."""

    def compose(self, first: Tensor, second: Tensor) -> Tensor:
        """The element that acts like ``second``, then ``first``."""

    def inverse(self, element: Tensor) -> Tensor:
        """The element that undoes another."""


@dataclass(frozen=True, eq=False)
class Element:
    """An element whose other parts than permutation and signs are not all the identity.

    Attributes:
        permutation: the permutation, signed where units flip, shape ``(*batch, n)``.
        parts: for each further action what it does to unit ``i`` of the result, shape
            ``(*batch, n)``. An action that is missing does nothing.
    """

    permutation: Tensor
    parts: Mapping[UnitLaw, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> torch.Size:
        """Shape of the permutation, ``(*batch, n)``."""
        return self.permutation.shape


AnyElement = Tensor | Element
Elements = Mapping[str, AnyElement]


def unit_of(permutation: Tensor) -> Tensor:
    """The units that a signed permutation takes, without their signs."""
    return torch.where(permutation < 0, ~permutation, permutation)


def flip(permutation: Tensor, where: Tensor) -> Tensor:
    """A signed permutation, the signs of some units of the result changed."""
    return torch.where(where, ~permutation, permutation)


def sample_permutation(
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Independent uniform permutations without signs, shape ``(*batch, n)``."""
    if len(shape) > 1:
        return torch.rand(tuple(shape), device=device, generator=generator).argsort(-1)
    # Exact and quicker, but knows no batches.
    return torch.randperm(shape[0], device=device, generator=generator)


def compose(first: AnyElement, second: AnyElement) -> AnyElement:
    """The element that acts like ``second``, then ``first``; batches broadcast."""
    one, two = as_element(first), as_element(second)
    permutation, other = torch.broadcast_tensors(one.permutation, two.permutation)
    units = unit_of(permutation)
    parts = dict(one.parts)
    for law, part in two.parts.items():
        part = part.expand(units.shape).gather(-1, units)
        parts[law] = law.compose(parts[law], part) if law in parts else part
    return shortest(Element(flip(other.gather(-1, units), permutation < 0), parts))


def inverse(element: AnyElement) -> AnyElement:
    """The element that undoes another."""
    permutation, parts = as_element(element).permutation, as_element(element).parts
    place = unit_of(permutation).argsort(-1)
    undone = {
        law: law.inverse(part.expand(place.shape).gather(-1, place)) for law, part in parts.items()
    }
    return shortest(Element(flip(place, permutation.gather(-1, place) < 0), undone))


def as_element(element: AnyElement) -> Element:
    """An element with all of its parts."""
    return element if isinstance(element, Element) else Element(element)


def shortest(element: Element) -> AnyElement:
    """The permutation alone, where nothing else belongs to the element."""
    return element if element.parts else element.permutation


def transform(function: Callable[[Tensor], Tensor], element: AnyElement) -> AnyElement:
    """An element whose tensors are those of another, after a change of their batch or device."""
    if not isinstance(element, Element):
        return function(element)
    parts = {law: function(part) for law, part in element.parts.items()}
    return Element(function(element.permutation), parts)


def where(condition: Tensor, element: AnyElement, other: AnyElement) -> AnyElement:
    """One of two elements, unit by unit."""
    one, two = _of_same_parts([element, other])
    parts = {law: torch.where(condition, part, two.parts[law]) for law, part in one.parts.items()}
    return shortest(Element(torch.where(condition, one.permutation, two.permutation), parts))


def concatenate(elements: Sequence[AnyElement]) -> AnyElement:
    """Batches of elements as one."""
    each = _of_same_parts(elements)
    parts = {law: torch.cat([one.parts[law] for one in each]) for law in each[0].parts}
    return shortest(Element(torch.cat([one.permutation for one in each]), parts))


def equal(first: AnyElement, second: AnyElement) -> bool:
    """Whether two elements are the same."""
    one, two = _of_same_parts([first, second])
    return torch.equal(one.permutation, two.permutation) and all(
        torch.equal(part, two.parts[law]) for law, part in one.parts.items()
    )


def _of_same_parts(elements: Sequence[AnyElement]) -> list[Element]:
    each = [as_element(element) for element in elements]
    laws = list(dict.fromkeys(law for element in each for law in element.parts))
    return [replace(e, parts={law: _part(e, law) for law in laws}) for e in each]


def _part(element: Element, law: UnitLaw) -> Tensor:
    if law in element.parts:
        return element.parts[law]
    return law.identity(element.shape, element.permutation.device)
