"""Estimators as JSON: the name of a registered class, and what its constructor takes."""

from __future__ import annotations

import dataclasses
from typing import Any

from pyro_perm.estimators import Estimator, registered_estimators

_WRITABLE = int | float | str | bool | None


def describe_estimator(estimator: Estimator) -> dict[str, Any]:
    """An estimator as JSON.

    :raises ValueError: if it is not registered, or its constructor's arguments cannot be told.
    """
    kind = type(estimator)
    if kind not in registered_estimators() or not dataclasses.is_dataclass(estimator):
        raise ValueError(
            f"{estimator} cannot be saved: make its class a dataclass, and register it with "
            "@pp.register_estimator"
        )
    arguments = {f.name: getattr(estimator, f.name) for f in dataclasses.fields(kind) if f.init}
    for name, value in arguments.items():
        if not isinstance(value, _WRITABLE):
            raise ValueError(
                f"{estimator} cannot be saved: its {name} is a {type(value).__name__}, and only "
                "numbers, strings and None are written down"
            )
    return {"name": kind.__name__, "arguments": arguments}


def estimator_of(described: dict[str, Any]) -> Estimator:
    """The estimator that was described.

    :raises ValueError: if no registered class has its name.
    """
    name = described["name"]
    for kind in registered_estimators():
        if kind.__name__ == name:
            return kind(**described["arguments"])
    raise ValueError(
        f"there is no estimator {name!r}: import the module that registers it with "
        "@pp.register_estimator before loading, or upgrade pyro_perm"
    )
