"""Complex numbers, and Fourier transforms: frequencies keep their order, all else is permuted."""

from __future__ import annotations

import torch

from pyro_perm.discovery.permutations.rules.pointwise import pointwise
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten

register_axis_rule(
    *(aten.complex, aten.polar, aten.resolve_conj, aten.resolve_neg),
    *operators("_neg_view", "_conj_physical", "_fw_primal"),
)(pointwise)


@register_axis_rule(*operators("_fft_r2c", "_fft_c2r", "_fft_c2c"))
def transform(rules: AxisRules, x: AxisTensor, dims: list[int], *rest: object) -> Axes:
    """A Fourier transform along some dimensions, of real numbers or of complex ones."""
    rules.freeze([x[dim] for dim in dims], f"transformed by {rules.operation}")
    moved = {dim % len(x) for dim in dims}
    (shape,) = rules.result_shapes
    return [rules.fixed(shape[d]) if d in moved else axis for d, axis in enumerate(x)]


@register_axis_rule(aten.view_as_real, *operators("view_as_real_copy"))
def real_and_imaginary(rules: AxisRules, x: AxisTensor) -> Axes:
    """Pairs of a real and an imaginary part, along a new last dimension."""
    return [*x, rules.fixed(2)]


@register_axis_rule(aten.view_as_complex, *operators("view_as_complex_copy"))
def complex_of_pairs(rules: AxisRules, x: AxisTensor) -> Axes:
    """Complex numbers from the pairs along the last dimension."""
    rules.freeze(x[-1], "real and imaginary parts")
    return list(x)[:-1]
