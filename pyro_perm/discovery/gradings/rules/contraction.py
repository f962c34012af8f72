"""Matrix products and convolutions: products whose terms are summed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.rules.table import GradingRules, grading_rule
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


@grading_rule(aten.mm, *operators("_sparse_sparse_matmul"))
def matrix_product(rules: GradingRules, x: Tensor, y: Tensor) -> Tensor:
    """``(i, k) @ (k, j)``; equal rows and columns, which are most, are looked at once."""
    (rows, row), (columns, column) = _unique_rows(x), _unique_rows(y.T)
    terms = rules.product(rows.unsqueeze(-1), columns.T.unsqueeze(0))
    return rules.common(terms, 1).squeeze(1)[row][:, column]


def _unique_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a matrix that are different, and which one each row is."""
    if not bool(x.any()):  # data, as a rule, of which there may be much
        return x[:1], torch.zeros(len(x), dtype=torch.long, device="cpu")
    rows, row = x.unique(dim=0, return_inverse=True)
    return rows, row


@grading_rule(aten.bmm)
def batched_product(rules: GradingRules, x: Tensor, y: Tensor) -> Tensor:
    """``(b, i, k) @ (b, k, j)``."""
    if bool((x == x[:1]).all()) and bool((y == y[:1]).all()):
        return matrix_product(rules, x[0], y[0]).expand(len(x), -1, -1)
    return torch.stack([matrix_product(rules, *pair) for pair in zip(x, y, strict=True)])


@grading_rule(aten.mv)
def matrix_vector(rules: GradingRules, x: Tensor, y: Tensor) -> Tensor:
    """``(i, k) @ (k,)``."""
    return rules.common(rules.product(x, y), 1).squeeze(1)


@grading_rule(aten.dot)
def inner_product(rules: GradingRules, x: Tensor, y: Tensor) -> Tensor:
    """``(k,) @ (k,)``."""
    return rules.common(rules.product(x, y), 0).squeeze(0)


@grading_rule(aten.addmm, *operators("_sparse_addmm"))
def add_matrix_product(
    rules: GradingRules, bias: Tensor, x: Tensor, y: Tensor, *rest: Any
) -> Tensor:
    """``bias + x @ y``."""
    return rules.together(bias, matrix_product(rules, x, y))


@grading_rule(aten.baddbmm)
def add_batched_product(
    rules: GradingRules, bias: Tensor, x: Tensor, y: Tensor, *rest: Any
) -> Tensor:
    """``bias + x @ y``, in batches."""
    return rules.together(bias, batched_product(rules, x, y))


@grading_rule(aten.addmv)
def add_matrix_vector(
    rules: GradingRules, bias: Tensor, x: Tensor, y: Tensor, *rest: Any
) -> Tensor:
    """``bias + x @ y`` for a vector ``y``."""
    return rules.together(bias, matrix_vector(rules, x, y))


@grading_rule(aten.convolution)
def convolution(
    rules: GradingRules,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """A matrix product of channels, in which all places of a channel have one degree."""
    channels, kernel = (
        rules.common(tensor, range(2, tensor.dim())).flatten(1) for tensor in (x, weight)
    )
    pairs = zip(channels.chunk(groups, 1), kernel.chunk(groups, 0), strict=True)
    out = [matrix_product(rules, c, k if transposed else k.T) for c, k in pairs]
    result = torch.cat(out, 1)
    if bias is not None:
        result = rules.together(result, bias)
    shape = rules.result_shapes[0]
    return result.reshape(*result.shape, *(1,) * (len(shape) - 2)).expand(shape)
