"""Groups that act on each unit by itself, one kind a file."""

from __future__ import annotations

from collections.abc import Collection

from pyro_perm.symmetry.actions.scale import Scale
from pyro_perm.symmetry.actions.sign import Sign
from pyro_perm.symmetry.actions.unit_action import UnitAction
from pyro_perm.symmetry.axis import Axis

# Finite ones first: their sums are taken over those of the kinds that follow.
KINDS: tuple[type[UnitAction], ...] = (Sign, Scale)


def actions_of(axes: Collection[Axis]) -> tuple[UnitAction, ...]:
    """The actions on a group's units that its axes ask for."""
    found = (kind.of(axes) for kind in KINDS)
    return tuple(action for action in found if action is not None)
