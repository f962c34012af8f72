"""What the density of a base guide sums over the images of a unit.

For units with factors ``q_i`` and sampled values ``w_j`` the density of a symmetrized guide needs
``L[i, j] = log int_H q_i(h w_j) dh``: a sum where ``H`` is finite, with respect to the counting
measure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from pyro_perm.rescaling import Degrees, UnitEntries, log_orbit_mass
from pyro_perm.symmetry.axis import Axis


class Part(NamedTuple):
    """What a group acts on along one axis.

    Attributes:
        position: position of the site among those that are looked at.
        axis: the axis, its dimension counted from the right.
        shape: shape of the site.
        width: number of entries of each unit.
    """

    position: int
    axis: Axis
    shape: tuple[int, ...]
    width: int


class Units(NamedTuple):
    """Unit-wise view of part of a factorized Gaussian, shapes ``(*batch, n, entries of a unit)``.

    Attributes:
        values: what was drawn.
        locs: of the factors.
        scales: likewise.
    """

    values: Tensor
    locs: Tensor
    scales: Tensor


class UnitPairs(ABC):
    """Every unit's values under every unit's factor, summed over the values' images.

    Attributes:
        log_densities: ``L[i, j]`` up to a constant, shape ``(*batch, n, n)``, in double precision
            where ``n`` is not so large that single precision serves.
    """

    log_densities: Tensor

    @abstractmethod
    def gradients(self, weights: Tensor) -> Units:
        """Gradients of ``sum_ij R_ij L_ij`` in values, locs and scales.

        :param weights: ``R``, shape ``(*batch, n, n)``; the rows sum to zero.
        :returns: in the precision of the units.
        """


class Orbits(ABC):
    """How ``H`` moves the entries of a unit."""

    @property
    def may_shift(self) -> bool:
        """Whether there is a fixed point to shift units by, other than zero."""
        return True

    @abstractmethod
    def fixed_point(self, entries: Tensor) -> Tensor:
        """The part of what belongs to units that no element of ``H`` changes.

        Units may be shifted by it: images of what remains are images of the units, shifted alike.

        :param entries: shape ``(..., entries of a unit)``.
        """

    @abstractmethod
    def pairs(self, units: Units) -> UnitPairs:
        """The unit pairs.

        :param units: relative to a fixed point, where that helps precision.
        """

    @abstractmethod
    def log_mass(self, units: Units) -> Tensor:
        """``log int_H q_i(h w_i) dh - log q_i(w_i)`` of each unit.

        :param units: as for :meth:`pairs`.
        :returns: shape ``(*batch, n)``, in nats and double precision.
        """

    def log_mass_ratio(self, units: Units, prior: UnitEntries, degrees: Degrees) -> Tensor:
        """:meth:`log_mass` minus that of the scales alone under Normal priors.

        :param units: as for :meth:`log_mass`.
        :param prior: the same units, as far as they are rescaled, under their priors.
        :param degrees: how these entries are rescaled.
        """
        return self.log_mass(units) - log_orbit_mass(prior, degrees)

    @abstractmethod
    def divergences(
        self, locs: Tensor, scales: Tensor, image_locs: Tensor, image_scales: Tensor
    ) -> Tensor:
        """``2 KL(q_j || q_i)`` for the image of ``q_j`` that is nearest to ``q_i``.

        The logarithms of the scales are left out: they cancel in the mean over both directions.

        :param locs: of ``q_i``, shape ``(n, entries of a unit)``; likewise ``scales``.
        :param image_locs: of ``q_j``; likewise ``image_scales``.
        :returns: shape ``(n, n)``, in nats.
        """
