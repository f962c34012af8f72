"""Values by name, in the form in which they came, and what is none."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor


def with_values(values: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of which some are replaced, or added.

    What ``state_dict`` of a network returns also tells the versions of its layers, by an attribute
    that some of them want to see again when they load it.
    """
    changed = copy.copy(values) if isinstance(values, dict) else dict(values)
    changed.update(others)
    return changed


def require_tensors(values: Any, what: str) -> None:
    """Refuse what is no mapping from names to tensors.

    :raises TypeError: with the fix for networks and arrays.
    """
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{what} must map names to tensors, but is a {type(values).__name__}: give a network's "
            "state_dict()"
        )
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"'{name}' of {what} must be a tensor, but is a {type(value).__name__}: convert it "
                "with torch.as_tensor"
            )


def require_values(values: Any, what: str, sites: Collection[str]) -> None:
    """Refuse what is no mapping to tensors, and names that wrappers of a network have changed.

    Nothing would happen to these: ``DataParallel`` and ``torch.compile`` name ``module.fc.weight``
    what is ``fc.weight`` in the network itself.

    :raises TypeError: as :func:`require_tensors`.
    :raises ValueError: naming a value and its site.
    """
    require_tensors(values, what)
    if any(name in sites for name in values):
        return
    for name in values:
        for site in sites:
            if name.endswith(f".{site}") or site.endswith(f".{name}"):
                raise ValueError(
                    f"'{name}' of {what} is site '{site}' of the symmetry under another name, so "
                    "that nothing would be moved: take the state of the network that the symmetry "
                    "was found in, or rename its entries"
                )
