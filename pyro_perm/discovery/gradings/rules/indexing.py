"""Looking entries up by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import GradingRules, grading_rule

aten = torch.ops.aten


@grading_rule(aten.embedding)
def embedding(rules: GradingRules, weight: Tensor, index: Tensor, *rest: Any) -> Tensor:
    """Rows of a table, all of which have one degree."""
    rules.refuse(index)
    return rules.common(weight, 0).expand(rules.result_shapes[0])


@grading_rule(aten.index_select)
def index_select(rules: GradingRules, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Slices, all of which have one degree."""
    rules.refuse(index)
    return rules.common(x, dim).expand(rules.result_shapes[0])


@grading_rule(aten.index.Tensor)
def index(rules: GradingRules, x: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Entries in places that are not looked at, all of which have one degree."""
    places = {dim: place for dim, place in enumerate(indices) if place is not None}
    for place in places.values():
        rules.refuse(place)
    first = [None if place is None else torch.zeros_like(place) for place in indices]
    chosen: Tensor = aten.index.Tensor(rules.common(x, places), first)
    return chosen
