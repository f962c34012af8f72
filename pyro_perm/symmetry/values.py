"""Values by name, in the form in which they came."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor


def with_values(values: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of which some are replaced, or added.

    What ``state_dict`` of a network returns also tells the versions of its layers, by an attribute
    that some of them want to see again when they load it.
    """
    changed = copy.copy(values) if isinstance(values, dict) else dict(values)
    changed.update(others)
    return changed
