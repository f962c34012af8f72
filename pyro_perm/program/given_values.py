"""Running a program on values of our choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor


class GivenValues(Messenger):
    """Gives sites their values, whatever they are drawn from; what they are is as it was.

    :param values: site -> value; others are drawn, and observed ones keep theirs.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True
