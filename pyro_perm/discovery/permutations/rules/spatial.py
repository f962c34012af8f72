"""Convolution, pooling and resampling: channels are permuted, places are not."""

from __future__ import annotations

import re
from typing import Any

import torch

from pyro_perm.discovery.permutations.expressions import AxisExpr, product_of, size_of
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten

_RANK = re.compile(r"(\d)d")


@register_axis_rule(aten.convolution, *operators("_convolution"))
def convolution(
    rules: AxisRules,
    x: AxisTensor,
    weight: AxisTensor,
    bias: AxisTensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    *rest: Any,
) -> Axes:
    """``x`` is ``(n, c, *places)``, ``weight`` is ``(out, c / groups, *places)``.

    A transposed convolution's weight is ``(c, out / groups, *places)``.
    """
    if transposed:
        outer_in, c = rules.factors(weight[0], [groups, size_of(weight[0]) // groups])
        outer_out, out = rules.free(groups), weight[1]
    else:
        outer_out, out = rules.factors(weight[0], [groups, size_of(weight[0]) // groups])
        outer_in, c = outer_out, weight[1]
    outer, inner = rules.factors(x[1], [groups, size_of(x[1]) // groups])
    rules.tie(outer, outer_in)
    rules.tie(inner, c)
    rules.tie(outer, outer_out)
    channels = product_of([outer_out, out])
    if bias is not None:
        rules.tie(channels, bias[0])
    lengths = [size_of(place) for place in weight.axes[2:]]
    places = [
        place
        if lengths[d] == stride[d] == 1 and padding[d] == 0 and not transposed
        else _resample(rules, place, _length(size_of(place), lengths[d], d, *geometry))
        for d, place in enumerate(x.axes[2:])
        for geometry in [(stride, padding, dilation, transposed, output_padding)]
    ]
    rules.freeze(weight.axes[2:], f"places of the kernel of {rules.operation}")
    return [x[0], channels, *places]


@register_axis_rule(aten.conv_tbc)
def convolution_in_time(
    rules: AxisRules, x: AxisTensor, weight: AxisTensor, bias: AxisTensor, pad: int
) -> Axes:
    """``x`` is ``(time, batch, c)``, ``weight`` is ``(time, c, out)``."""
    rules.tie(x[2], weight[1])
    rules.tie(weight[2], bias[0])
    rules.freeze(weight[0], f"places of the kernel of {rules.operation}")
    return [_resample(rules, x[0], rules.result_shapes[0][0]), x[1], weight[2]]


def _length(
    length: int,
    kernel: int,
    d: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
) -> int:
    reach = dilation[d] * (kernel - 1)
    if transposed:
        return (length - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d] + 1
    return (length + 2 * padding[d] - reach - 1) // stride[d] + 1


def _resample(rules: AxisRules, place: AxisExpr, length: int) -> AxisExpr:
    rules.freeze(place, f"places that {rules.operation} mixes with their neighbours")
    return rules.fixed(length)


@register_axis_rule(aten.max_unpool2d, aten.max_unpool3d)
def unpool(rules: AxisRules, x: AxisTensor, i: AxisTensor, size: list[int], *rest: Any) -> Axes:
    """Entries in the places that an index names, in every channel by itself."""
    rules.freeze([*x.axes[-len(size) :], *i.axes[-len(size) :]], "places named by an index")
    channels = [rules.tie(*pair) for pair in zip(list(x)[: -len(size)], i, strict=False)]
    return [*channels, *map(rules.fixed, size)]


@register_axis_rule(aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sample(rules: AxisRules, x: AxisTensor, grid: AxisTensor, *rest: Any) -> Axes:
    """Values of every channel at the coordinates in the last dimension of a grid."""
    rules.freeze([*x.axes[2:], grid[-1]], f"coordinates of {rules.operation}")
    return [rules.tie(x[0], grid[0]), x[1], *grid.axes[1:-1]]


def _register_resampling() -> None:
    """Operations on ``(*channels, *places)``, with the number of place dimensions in their name."""
    for operation in operators(
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
        *("adaptive_max_pool2d", "adaptive_max_pool3d"),
        *("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
        *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
        *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa"),
        *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
        *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
    ):
        num_places = int(_RANK.findall(operation.__name__)[0])
        register_axis_rule(operation)(_resampling(num_places))


def _resampling(num_places: int) -> Any:
    def resampling(rules: AxisRules, x: AxisTensor, *rest: Any) -> Axes | tuple[Axes, ...]:
        """Mixes places with their neighbours, in every channel alike."""
        rules.freeze(
            x.axes[-num_places:], f"places that {rules.operation} mixes with their neighbours"
        )
        channels = list(x)[:-num_places]
        results = tuple(
            [*channels, *(rules.fixed(length) for length in shape[-num_places:])]
            for shape in rules.result_shapes
        )
        return results[0] if len(results) == 1 else results

    return resampling


_register_resampling()
