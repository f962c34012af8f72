"""What the check of one action of a group has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_EFFECTIVE = 1e3


@dataclass(frozen=True)
class GroupCheck:
    """What one action of a group did to what it must leave alone.

    That is the log joint, and where units are rescaled the likelihood and the priors of the sites
    that stay.

    Attributes:
        group: the group.
        action: what was done to its units, ``"permute"``, ``"flip"`` or ``"rescale"``.
        change: the largest change, in nats.
        control: the change when the last axis that moves is left behind, in nats; None where a
            single axis moves, which has no mis-tied variant.
        rounding: how much of a change rounding errors can explain, in nats.
        by_site: the changes of the sites' log-probabilities, in nats.
        repair: what would leave everything alone, where that is known.
    """

    group: str
    action: str
    change: float
    control: float | None
    rounding: float
    by_site: Mapping[str, float] = field(default_factory=dict)
    repair: str | None = None

    @property
    def is_effective(self) -> bool:
        """Whether a wrong spec would have been noticed."""
        return self.control is not None and self.control > _EFFECTIVE * self.rounding

    @property
    def passed(self) -> bool:
        """Whether nothing changed that must not."""
        return self.change <= self.rounding
