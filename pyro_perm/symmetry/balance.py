r"""Balanced representatives of orbits under rescaling: the shortest weights on each orbit.

With ``t`` the logarithms of all units' scales, entry ``e`` is multiplied by ``exp (D t)_e``, where
row ``e`` of ``D`` holds the degrees of the axes along which it lies. On the orbit of ``w``

.. math:: F(t) = \tfrac12 \sum_e w_e^2\, e^{2 (D t)_e}

is convex, and where it has a minimum the weights there are the same for all weights of the orbit
(Kempf & Ness 1979). Its gradient vanishes where incoming and outgoing entries of every unit have
equal norms, for degrees 1 and -1. A layer that shares no site with others is balanced in closed
form. Others are by sweeps over the layers (Osborne 1960, for a matrix; Stock et al. 2019, for
networks), each followed by a step of Newton's method, its linear system solved by conjugate
gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_perm.symmetry.actions.scale import Scale
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.elements import AnyElement, Element
from pyro_perm.symmetry.group import SymmetryGroup

_MOST_ROUNDS = 100
# Newton's method converges quadratically: what is left after so small a step is rounding.
_LAST_STEP = 1e-7
_RESIDUAL = 1e-7
_ROUNDING = 1e-12
_HALVINGS = 40


@torch.no_grad()
def balance(symmetry: SymmetryGroup, values: Mapping[str, Tensor]) -> dict[str, AnyElement]:
    """What rescales the units of every draw to the balanced representative of its orbit.

    A unit of which one end is zero, or leads to such units only, can be made as short as one likes.
    It does nothing in the network: it keeps its scale, and its entries do not count for the units
    that share them.

    :param values: site of the symmetry -> shape ``(draws, *site shape)``.
    :returns: group that rescales -> element that leaves units in their places, shape
        ``(draws, n)``.
    :raises ValueError: if squares of entries are out of the range of double precision.
    """
    if not symmetry.open_groups:
        return {}
    lengths = _SquaredLengths.of(symmetry, values).without_dead_units()
    log_scales = _minimum(lengths)
    elements: dict[str, AnyElement] = {}
    for group, place in lengths.places.items():
        part = log_scales[:, place]
        units = symmetry.factor(group).identity(part.device)
        elements[group] = Element(units.expand(part.shape), {Scale(): part})
    return elements


class _Site(NamedTuple):
    """Squares of a site's entries, which some groups rescale.

    Attributes:
        squares: shape ``(draws, *site shape)``, summed over dimensions along which no axis lies.
        axes: pairs of a group and one of its axes.
        rank: number of dimensions of the site.
    """

    squares: Tensor
    axes: tuple[tuple[str, Axis], ...]
    rank: int

    def along(self, axis: Axis, numbers: Tensor, elsewhere: float) -> Tensor:
        """Numbers, one a unit, laid along an axis, so that they broadcast against the squares."""
        length = self.squares.shape[axis.dim]
        return axis.along(numbers, length, self.rank, elsewhere=elsewhere)


@dataclass(frozen=True, eq=False)
class _SquaredLengths:
    """``2 F``, as a function of ``t``, the units of all groups side by side.

    Attributes:
        sites: all entries that count.
        places: group -> where its units are in ``t``.
        spans: by how much, at most, the logarithm of the ratio of a unit's ends changes with its
            ``t``, where all units of its group are rescaled alike; shape ``(units,)``.
    """

    sites: tuple[_Site, ...]
    places: dict[str, slice]
    spans: Tensor

    @classmethod
    def of(cls, symmetry: SymmetryGroup, values: Mapping[str, Tensor]) -> _SquaredLengths:
        """Of the sites that some group rescales and that do not only go along with others."""
        sites = []
        for name in symmetry.sites:
            axes = tuple((group, axis) for group, axis in symmetry.actions_on(name) if axis.scale)
            if axes and not symmetry.follows(name):
                squares = values[name].double().square()
                rank = symmetry.site_rank(name)
                others = sorted({*range(-rank, 0)} - {axis.dim for _, axis in axes})
                squares = squares.sum(others, keepdim=True) if others else squares
                sites.append(_Site(squares, axes, rank))
        places, start = {}, 0
        for group in symmetry.open_groups:
            places[group] = slice(start, start + symmetry.groups[group])
            start = places[group].stop
        spans = sites[0].squares.new_empty(start)
        for group, place in places.items():
            spans[place] = _span([axes for _, axes, _ in sites], group)
        return cls(tuple(sites), places, spans)._without_constant_entries()

    def without_dead_units(self) -> _SquaredLengths:
        """The same without the entries of units that could be rescaled without end."""
        alive = self._bounds().amin(0)
        if bool(alive.all()):
            return self
        sites = []
        for site in self.sites:
            squares = site.squares
            for group, axis in site.axes:
                squares = squares * site.along(axis, alive[:, self.places[group]], 1.0)
            sites.append(site._replace(squares=squares))
        return replace(self, sites=tuple(sites))

    def _bounds(self) -> Tensor:
        """One where ``t`` can't grow, and can't fall, without end, while no entry grows; else zero.

        A unit is bounded from above by an incoming entry, if it comes from no unit or from one that
        is bounded from above itself; from below likewise.

        :returns: shape ``(2, draws, units)``.
        """
        bounds = self.start().new_zeros(2, *self.start().shape)
        while True:
            found = torch.zeros_like(bounds)
            for site in self.sites:
                for group, axis in site.axes:
                    count = (site.squares > 0).to(bounds)
                    for other, along in site.axes:
                        if (other, along) != (group, axis):
                            bound = bounds[int(along.scale > 0), :, self.places[other]]
                            count = count * site.along(along, bound, 1.0)
                    count = axis.units(count, site.rank).sum(-1)
                    found[int(axis.scale < 0), :, self.places[group]] += count
            found = (found > 0).to(bounds)
            if torch.equal(found, bounds):
                return bounds
            bounds = found

    def of_group(self, group: str) -> _SquaredLengths:
        """Those of the sites that one group rescales."""
        sites = (site for site in self.sites if group in dict(site.axes))
        return replace(self, sites=tuple(sites))

    def start(self) -> Tensor:
        """Zero, shape ``(draws, units)``."""
        squares = self.sites[0].squares
        return squares.new_zeros(len(squares), len(self.spans))

    def value(self, t: Tensor) -> Tensor:
        """``2 F``, shape ``(draws,)``."""
        return torch.stack([entries.flatten(1).sum(-1) for entries in self.entries(t)]).sum(0)

    def entries(self, t: Tensor) -> list[Tensor]:
        """``w^2 e^{2 D t}``."""
        powers = self.powers(t)
        return [s.squares * (2 * p).exp() for s, p in zip(self.sites, powers, strict=True)]

    def powers(self, t: Tensor) -> list[Tensor]:
        """``D t``."""
        return [
            torch.as_tensor(
                sum(site.along(a, a.scale * t[:, self.places[g]], 0.0) for g, a in site.axes)
            )
            for site in self.sites
        ]

    def ends(self, t: Tensor) -> Tensor:
        """The positive and the negative part of the gradient, shape ``(2, draws, units)``."""
        return self.totals(self.entries(t))

    def totals(self, entries: Sequence[Tensor]) -> Tensor:
        """``D^T y`` in its positive and its negative part, shape ``(2, draws, units)``."""
        totals = entries[0].new_zeros(2, len(entries[0]), len(self.spans))
        for site, each in zip(self.sites, entries, strict=True):
            for group, axis in site.axes:
                total = axis.units(each, site.rank).sum(-1)
                totals[int(axis.scale < 0), :, self.places[group]] += abs(axis.scale) * total
        return totals

    def _without_constant_entries(self) -> _SquaredLengths:
        """The same without entries that several axes rescale to no effect, as on a diagonal."""
        generator = torch.Generator().manual_seed(0)
        generic = torch.rand(
            1, len(self.spans), dtype=torch.float64, device="cpu", generator=generator
        )
        powers = self.powers(generic.to(self.spans.device))
        sites = (
            site._replace(squares=site.squares * (power.abs() > 1e-9))
            for site, power in zip(self.sites, powers, strict=True)
        )
        return replace(self, sites=tuple(sites))


def _span(axes_of_sites: Sequence[Sequence[tuple[str, Axis]]], group: str) -> int:
    """``2 k (d_+ + d_-)`` for degrees up to ``d_+`` and down to ``-d_-``.

    With ``k`` axes on one site, ``exp (x_1 + ... + x_k)`` is bounded by the mean of
    ``exp (k x_1), ..., exp (k x_k)``, so that all units may be rescaled at once.
    """
    own = [[axis.scale for g, axis in axes if g == group] for axes in axes_of_sites]
    degrees = [degree for each in own for degree in each]
    return 2 * max(map(len, own)) * (max(0, *degrees) - min(0, *degrees))


def _minimum(lengths: _SquaredLengths) -> Tensor:
    """Where ``F`` is least, shape ``(draws, units)``.

    :raises ValueError: if that is nowhere.
    """
    t = lengths.start()
    parts = {group: lengths.of_group(group) for group in lengths.places}
    for _ in range(_MOST_ROUNDS):
        for group, place in lengths.places.items():
            incoming, outgoing = parts[group].ends(t)[..., place]
            balanced = incoming == outgoing  # Also where both are zero.
            step = (outgoing.log() - incoming.log()) / lengths.spans[place]
            t[:, place] += step.masked_fill(balanced, 0.0)
        step = _newton_step(lengths, t)
        if bool((step.abs() <= _LAST_STEP).all()):
            return t + step
        t += _shortened(lengths, t, step)
    # Where little but units themselves enters and leaves them, rounding alone makes longer steps.
    incoming, outgoing = lengths.ends(t)
    if bool(((incoming - outgoing).abs() <= _ROUNDING * (incoming + outgoing)).all()):
        return t
    raise ValueError(
        "the incoming and outgoing entries of some draw's units cannot be balanced in double "
        "precision: their squares are out of its range"
    )


def _newton_step(lengths: _SquaredLengths, t: Tensor) -> Tensor:
    """``-H^{-1}`` times the gradient, by conjugate gradients, as far as ``H`` is not singular."""
    entries = lengths.entries(t)
    incoming, outgoing = lengths.totals(entries)

    def curvature(direction: Tensor) -> Tensor:
        powers = lengths.powers(direction)
        totals = lengths.totals([w * p for w, p in zip(entries, powers, strict=True)])
        return 2 * (totals[0] - totals[1])

    diagonal = incoming + outgoing
    diagonal = torch.where(diagonal > 0, diagonal, 1.0)
    step, residual = torch.zeros_like(t), outgoing - incoming
    direction = conditioned = residual / diagonal
    square = first = (residual * conditioned).sum(-1, keepdim=True)
    for _ in range(2 * t.shape[-1]):
        if bool((square <= _RESIDUAL**2 * first).all()):
            break
        image = curvature(direction)
        size = _ratio(square, (direction * image).sum(-1, keepdim=True))
        step, residual = step + size * direction, residual - size * image
        conditioned = residual / diagonal
        previous, square = square, (residual * conditioned).sum(-1, keepdim=True)
        direction = conditioned + _ratio(square, previous) * direction
    return step


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Zero where a draw has converged."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def _shortened(lengths: _SquaredLengths, t: Tensor, step: Tensor) -> Tensor:
    """The step, halved in draws where it leads too far."""
    value = lengths.value(t)
    for _ in range(_HALVINGS):
        too_far = ~(lengths.value(t + step) <= value * (1 + 1e-12))
        if not bool(too_far.any()):
            break
        step = torch.where(too_far.unsqueeze(-1), 0.5 * step, step)
    return step
