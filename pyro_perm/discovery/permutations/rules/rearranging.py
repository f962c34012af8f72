"""Moving entries: shuffles, flips, and between channels and places, as patches are."""

from __future__ import annotations

import torch

from pyro_perm.discovery.permutations.expressions import product_of, size_of
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    moves_entries,
    register_axis_rule,
)

aten = torch.ops.aten


@register_axis_rule(aten.pixel_shuffle)
def pixel_shuffle(rules: AxisRules, x: AxisTensor, r: int) -> Axes:
    """``(*, c r r, h, w)`` to ``(*, c, h r, w r)``."""
    c, rows, columns = rules.factors(x[-3], [size_of(x[-3]) // r**2, r, r])
    return [*x.axes[:-3], c, product_of([x[-2], rows]), product_of([x[-1], columns])]


@register_axis_rule(aten.pixel_unshuffle)
def pixel_unshuffle(rules: AxisRules, x: AxisTensor, r: int) -> Axes:
    """``(*, c, h r, w r)`` to ``(*, c r r, h, w)``."""
    h, rows = rules.factors(x[-2], [size_of(x[-2]) // r, r])
    w, columns = rules.factors(x[-1], [size_of(x[-1]) // r, r])
    return [*x.axes[:-3], product_of([x[-3], rows, columns]), h, w]


@register_axis_rule(aten.channel_shuffle)
@moves_entries
def channel_shuffle(rules: AxisRules, x: AxisTensor, groups: int) -> Axes:
    """Channels ``(groups, members)`` to ``(members, groups)``."""
    group, member = rules.unflatten(x[1], [groups, size_of(x[1]) // groups])
    return [x[0], rules.flatten([member, group]), *x.axes[2:]]


@register_axis_rule(aten.flip)
def flip(rules: AxisRules, x: AxisTensor, dims: list[int]) -> Axes:
    """Entries from the last to the first."""
    axes = list(x)
    for dim in dims:
        axes[dim] = rules.rearranged(axes[dim], range(x.shape[dim])[::-1])
    return axes


@register_axis_rule(aten.roll)
def roll(rules: AxisRules, x: AxisTensor, shifts: list[int], dims: list[int]) -> Axes:
    """Entries some places further on, the last ones first."""
    if not dims and len(x) > 1:  # All entries are one long dimension.
        rules.freeze(x)
        return list(x)
    axes = list(x)
    for dim, shift in zip(dims or [0], shifts, strict=True):
        length = x.shape[dim]
        axes[dim] = rules.rearranged(axes[dim], [(k - shift) % length for k in range(length)])
    return axes


@register_axis_rule(aten.im2col)
def patches(rules: AxisRules, x: AxisTensor, kernel: list[int], *rest: object) -> Axes:
    """``(*, c, h, w)`` to ``(*, c k k, number of patches)``."""
    rules.freeze(x.axes[-2:], f"places that {rules.operation} cuts into patches")
    (shape,) = rules.result_shapes
    within = rules.fixed(kernel[0] * kernel[1])
    return [*x.axes[:-3], product_of([x[-3], within]), rules.fixed(shape[-1])]


@register_axis_rule(aten.col2im)
def sum_of_patches(
    rules: AxisRules, x: AxisTensor, size: list[int], kernel: list[int], *rest: object
) -> Axes:
    """``(*, c k k, number of patches)`` to ``(*, c, h, w)``."""
    within = kernel[0] * kernel[1]
    c, k = rules.factors(x[-2], [size_of(x[-2]) // within, within])
    rules.freeze([k, x[-1]], f"patches that {rules.operation} puts in their places")
    return [*x.axes[:-2], c, *map(rules.fixed, size)]
