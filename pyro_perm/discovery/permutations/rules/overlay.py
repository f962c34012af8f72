"""Tensors that share memory: what was written through a view, and what an alias reads.

A tensor's entries are found in another one by their coordinates. Where a coordinate counts along a
dimension, the two axes are permuted alike, as far as they overlap; where it is the same for all
entries, one entry of the axis has a role of its own; everything else stays in place.
"""

from __future__ import annotations

from pyro_perm.discovery.permutations.expressions import AxisExpr, size_of
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.discovery.recording.graph import OVERLAY
from pyro_perm.discovery.recording.memory import Place, Places

_CAUSE = "written in place through a view; use torch.stack or torch.cat"


@register_axis_rule(OVERLAY)
def overlay(
    rules: AxisRules,
    before: AxisTensor | None,
    other: AxisTensor,
    covering: Places | None,
    inside: Places | None,
) -> Axes:
    """A tensor, from what it was before and another one that lies over it.

    :param covering: where the tensor's entries are in the other, if they all are there.
    :param inside: where the other's entries are in the tensor, if they all are there.
    """
    if covering is not None:
        return _read_from(rules, other, covering)
    if before is None or inside is None:
        rules.freeze([axis for tensor in (before, other) for axis in tensor or ()], _CAUSE)
        return [rules.fixed(size, _CAUSE) for size in rules.result_shapes[0]]
    for axis, place in zip(before, inside, strict=True):
        _tie_part(rules, axis, other, place)
    return list(before)


def _read_from(rules: AxisRules, other: AxisTensor, places: Places) -> Axes:
    axes = [rules.free(size) for size in rules.result_shapes[0]]
    for axis, place in zip(other, places, strict=True):
        if place.varies_along:
            rules.freeze([axis, *(axes[dim] for dim in place.varies_along)], _CAUSE)
        elif place.along is None:
            _segment(rules, axis, place, 1)
        else:
            found = _segment(rules, axis, place, size_of(axes[place.along]))
            rules.tie(found[1], axes[place.along])
    return axes


def _tie_part(rules: AxisRules, axis: AxisExpr, other: AxisTensor, place: Place) -> None:
    if place.varies_along:
        rules.freeze([axis, *(other[dim] for dim in place.varies_along)], _CAUSE)
    elif place.along is None:
        _segment(rules, axis, place, 1)
    else:
        part = _segment(rules, axis, place, size_of(other[place.along]))[1]
        rules.tie(part, other[place.along])


def _segment(rules: AxisRules, axis: AxisExpr, place: Place, length: int) -> list[AxisExpr]:
    sizes = [place.start, length, size_of(axis) - place.start - length]
    return rules.segments(axis, sizes, _CAUSE)
