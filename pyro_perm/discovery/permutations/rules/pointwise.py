"""Operations that act on every entry alike: axes that meet are permuted alike."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch

from pyro_perm.discovery.permutations.expressions import UNIT
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    moves_entries,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


def broadcast(rules: AxisRules, tensors: list[AxisTensor]) -> Axes:
    """Tie the axes that broadcasting brings together; dimensions of length one say nothing."""
    result: Axes = []
    for meeting in zip_longest(*(reversed(tensor.axes) for tensor in tensors), fillvalue=UNIT):
        extended = [axis for axis in meeting if axis != UNIT]
        for other in extended[1:]:
            rules.tie(extended[0], other)
        result.insert(0, extended[0] if extended else UNIT)
    return result


@register_axis_rule(
    *(aten.detach, aten.alias, aten.lift_fresh, aten.lift_fresh_copy),
    *(aten.log_sigmoid_forward, aten.special_erfcx, aten.rrelu_with_noise),
    *operators("_to_copy", "_conj", "_prelu_kernel"),
    *(aten.special_log_ndtr, aten.special_ndtri, aten.special_entr, aten.clone, aten.hardswish),
    # Tagged as pointwise by later versions of PyTorch than the first that is served.
    *(aten.celu, aten.elu, aten.hardshrink, aten.hardsigmoid, aten.hardtanh, aten.isfinite),
    *(aten.ldexp, aten.leaky_relu, aten.mish, aten.rad2deg, aten.relu6, aten.rrelu, aten.selu),
    *(aten.softplus, aten.softshrink, aten.threshold, *operators("_conj_physical")),
)
@moves_entries
def pointwise(rules: AxisRules, *arguments: Any) -> Axes | tuple[Axes, ...]:
    """Every entry of the result is a function of the arguments' entries at the same place."""
    axes = broadcast(rules, [a for a in arguments if isinstance(a, AxisTensor)])
    num_results = len(rules.result_shapes)
    return axes if num_results == 1 else (axes,) * num_results


@register_axis_rule(aten.fill, aten.zero)
def fill(rules: AxisRules, tensor: AxisTensor, *value: Any) -> Axes:
    """Overwriting every entry with one number."""
    return [rules.free(size) for size in tensor.shape]


@register_axis_rule(aten.copy)
def copy(rules: AxisRules, tensor: AxisTensor, value: AxisTensor, *rest: Any) -> Axes:
    """Overwriting every entry with those of another tensor."""
    shape = tensor.shape
    padded = [UNIT] * (len(shape) - len(value)) + list(value)
    return [rules.free(n) if axis == UNIT else axis for n, axis in zip(shape, padded, strict=True)]


@register_axis_rule(aten.is_same_size, *operators("_local_scalar_dense"))
def read(rules: AxisRules, *arguments: Any) -> tuple[Axes, ...]:
    """Reading a scalar, which the group leaves alone because scalars have no axis."""
    return ()


@register_axis_rule(aten.equal)
def equal(rules: AxisRules, first: AxisTensor, second: AxisTensor) -> tuple[Axes, ...]:
    """Comparing all entries at once."""
    broadcast(rules, [first, second])
    return ()


def _register_tagged() -> None:
    for name in dir(aten):
        packet = getattr(aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            operation = getattr(packet, overload)
            if torch.Tag.pointwise in operation.tags:
                register_axis_rule(operation)(pointwise)


_register_tagged()
