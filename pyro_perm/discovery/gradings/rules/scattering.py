"""Writing entries to places that an index names: all that may meet there has one degree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import SCALES, GradingRules, grading_rule
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


@grading_rule(aten.index_add, aten.index_copy)
def write_slices(
    rules: GradingRules, x: Tensor, dim: int, index: Tensor, source: Tensor, *rest: Any
) -> Tensor:
    """``x[index[i]] += source[i]``, or ``=``, along a dimension."""
    rules.refuse(index)
    return rules.together(rules.common(x, dim), rules.common(source, dim)).expand(x.shape)


@grading_rule(aten.scatter_add, aten.scatter.src)
def write_entries(
    rules: GradingRules, x: Tensor, dim: int, index: Tensor, source: Tensor, *rest: Any
) -> Tensor:
    """``x[index[i, j], j] += source[i, j]``, or ``=``."""
    rules.refuse(index)
    lengths = [list(tensor.shape) for tensor in (x, index, source)]
    for each in lengths:
        each[dim] = 1
    is_aligned = lengths[0] == lengths[1] == lengths[2]
    mixed = [dim] if is_aligned else range(x.dim())
    return rules.together(rules.common(x, mixed), rules.common(source, mixed)).expand(x.shape)


@grading_rule(*operators("scatter_reduce.two"))
def reduce_entries(
    rules: GradingRules,
    x: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
    reduction: str,
    *rest: Any,
) -> Tensor:
    """``x[index[i, j], j]`` and ``source[i, j]`` summed, averaged or compared."""
    result = write_entries(rules, x, dim, index, source)
    allowed = ("sum", "mean", "amax", "amin") if rules.grading is SCALES else ("sum", "mean")
    if reduction not in allowed:
        rules.refuse(result)
    return result
