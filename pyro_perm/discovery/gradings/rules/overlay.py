"""Tensors that share memory: what was written through a view, and what an alias reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import GradingRules, grading_rule
from pyro_perm.discovery.recording.graph import OVERLAY
from pyro_perm.discovery.recording.memory import Places


@grading_rule(OVERLAY)
def overlay(
    rules: GradingRules,
    before: Tensor | None,
    other: Tensor,
    covering: Places | None,
    inside: Places | None,
) -> Tensor:
    """A tensor, from what it was before and another one that lies over it.

    :param covering: where the tensor's entries are in the other, if they all are there.
    :param inside: where the other's entries are in the tensor, if they all are there.
    """
    (shape,) = rules.result_shapes
    there = None if covering is None else _coordinates(covering, shape)
    if there is not None:
        return other[there].expand(shape)
    here = None if inside is None else _coordinates(inside, other.shape)
    if before is None or here is None:
        for tensor in (before, other):
            if tensor is not None:
                rules.refuse(tensor, "lies elsewhere than can be told")
        return rules.invariant()
    result = before.clone()
    result[here] = other
    return result


def _coordinates(places: Places, shape: Sequence[int]) -> tuple[Tensor, ...] | None:
    """The coordinates of a part's entries along each dimension of its container."""
    if any(place.varies_along for place in places):
        return None
    return tuple(
        torch.tensor(place.start, device="cpu")
        if place.along is None
        else (place.start + torch.arange(shape[place.along], device="cpu")).view(
            [-1 if dim == place.along else 1 for dim in range(len(shape))]
        )
        for place in places
    )
