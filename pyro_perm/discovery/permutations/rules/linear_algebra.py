"""Solvers, determinants and factorizations of matrices.

With permutation matrices ``P`` and ``Q``, ``(P A Q')^-1 = Q A^-1 P'``: rows and columns of an
inverse are permuted by themselves. Determinants and spectra are those of ``P A P'``; factorizations
depend on the order of rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch

from pyro_perm.discovery.permutations.expressions import UNIT, AxisExpr
from pyro_perm.discovery.permutations.rules.pointwise import broadcast
from pyro_perm.discovery.permutations.rules.table import (
    Axes,
    AxisRules,
    AxisTensor,
    register_axis_rule,
)
from pyro_perm.program._torch_internals import operators

aten = torch.ops.aten


@register_axis_rule(aten.linalg_inv_ex)
def inverse(rules: AxisRules, matrix: AxisTensor, *rest: Any) -> tuple[Axes, Axes]:
    """The inverse, and whether there is one."""
    batch = list(matrix)[:-2]
    return [*batch, matrix[-1], matrix[-2]], batch


@register_axis_rule(*operators("_linalg_solve_ex"))
def solve(
    rules: AxisRules, matrix: AxisTensor, y: AxisTensor, left: bool, *rest: Any
) -> tuple[Axes, ...]:
    """``A^-1 Y`` for a matrix or a vector ``Y``, or ``Y A^-1``."""
    is_vector = len(rules.result_shapes[0]) < len(matrix)
    columns = AxisTensor((*y, UNIT)) if is_vector else y
    batch = _batch(rules, matrix, columns)
    if left:
        rules.tie(matrix[-2], columns[-2])
        found = [*batch, matrix[-1], columns[-1]]
    else:
        rules.tie(matrix[-1], columns[-1])
        found = [*batch, columns[-2], matrix[-2]]
    return found[:-1] if is_vector else found, *_intermediates(rules, matrix, 1)


@register_axis_rule(*operators("_linalg_det"))
def determinant(rules: AxisRules, matrix: AxisTensor) -> tuple[Axes, ...]:
    """The determinant, whose sign tells the parity of a permutation of the rows alone."""
    rules.tie(matrix[-2], matrix[-1])
    return list(matrix)[:-2], *_intermediates(rules, matrix, 1)


@register_axis_rule(*operators("_linalg_slogdet"))
def log_determinant(rules: AxisRules, matrix: AxisTensor) -> tuple[Axes, ...]:
    """The sign of the determinant, and the logarithm of its absolute value."""
    if rules.is_used[0]:
        rules.tie(matrix[-2], matrix[-1])
    batch = list(matrix)[:-2]
    return batch, batch, *_intermediates(rules, matrix, 2)


@register_axis_rule(*operators("_linalg_eigh"))
def spectrum(rules: AxisRules, matrix: AxisTensor, *rest: Any) -> tuple[Axes, ...]:
    """Eigenvalues in order, and eigenvectors."""
    rules.tie(matrix[-2], matrix[-1])
    values = [*list(matrix)[:-2], rules.fixed(rules.result_shapes[0][-1])]
    return values, *_intermediates(rules, matrix, 1)


@register_axis_rule(*operators("_linalg_svd"))
def singular_values(rules: AxisRules, matrix: AxisTensor, *rest: Any) -> tuple[Axes, ...]:
    """Singular values in order, between singular vectors."""
    left, right = (*_intermediates(rules, matrix, 0, 1), *_intermediates(rules, matrix, 2))
    return left, [*list(matrix)[:-2], rules.fixed(rules.result_shapes[1][-1])], right


@register_axis_rule(aten.linalg_matrix_exp)
def exponential(rules: AxisRules, matrix: AxisTensor) -> Axes:
    """The exponential of a matrix: ``exp(P A P') = P exp(A) P'``."""
    rules.tie(matrix[-2], matrix[-1])
    return list(matrix)


@register_axis_rule(aten.cholesky_solve)
def solve_by_factor(rules: AxisRules, y: AxisTensor, matrix: AxisTensor, upper: bool) -> Axes:
    """``(L L')^-1 Y``, from the Cholesky factor ``L``."""
    return triangular_solve(rules, matrix, y, upper, True)


@register_axis_rule(aten.linalg_solve_triangular)
def triangular_solve(
    rules: AxisRules, matrix: AxisTensor, y: AxisTensor, upper: bool, left: bool, *rest: Any
) -> Axes:
    """``A^-1 Y`` or ``Y A^-1`` for a triangular ``A``, whose rows and columns have an order."""
    solved = -2 if left else -1
    rules.freeze([*matrix.axes[-2:], y[solved]])
    axes = [*_batch(rules, matrix, y), *y.axes[-2:]]
    axes[solved] = rules.fixed(rules.result_shapes[0][solved])
    return axes


@register_axis_rule(
    *(aten.linalg_cholesky_ex, aten.cholesky_inverse, aten.linalg_qr, aten.linalg_lu),
    *(aten.linalg_lu_factor_ex, aten.linalg_eig, aten.linalg_ldl_factor_ex),
    *operators("_linalg_eigvals"),
)
def factorization(rules: AxisRules, matrix: AxisTensor, *rest: Any) -> Axes | tuple[Axes, ...]:
    """What depends on the order of rows and columns; the other dimensions are a batch."""
    rules.freeze(matrix.axes[-2:])
    results = _intermediates(rules, matrix, 0)
    return results[0] if len(results) == 1 else results


@register_axis_rule(aten.linalg_cross)
def cross_product(rules: AxisRules, x: AxisTensor, y: AxisTensor, dim: int) -> Axes:
    """The cross product along a dimension of length three."""
    rules.freeze([x[dim], y[dim]])
    return broadcast(rules, [x, y])


def _batch(rules: AxisRules, *matrices: AxisTensor) -> Axes:
    return broadcast(rules, [AxisTensor(matrix.axes[:-2]) for matrix in matrices])


def _intermediates(
    rules: AxisRules, matrix: AxisTensor, start: int, stop: int | None = None
) -> tuple[Axes, ...]:
    """Results that depend on the order of rows and columns, if they are used."""
    if any(rules.is_used[start:stop]):
        rules.freeze(matrix.axes[-2:])
    batch: list[AxisExpr] = list(matrix)[:-2]
    return tuple(
        [*batch, *(rules.fixed(length) for length in shape[len(batch) :])]
        for shape in rules.result_shapes[start:stop]
    )
