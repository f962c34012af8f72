"""Operations that only move entries: they are carried out on the degrees themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.degrees import ANY
from pyro_perm.discovery.gradings.rules.table import GradingRule, GradingRules, grading_rule
from pyro_perm.program._torch_internals import arguments_of, operators

aten = torch.ops.aten


@grading_rule(aten.view.default, *operators("_unsafe_view", "_reshape_alias"), aten.reshape)
def reshape(rules: GradingRules, x: Tensor, shape: list[int], *rest: Any) -> Tensor:
    """Another shape for the same entries."""
    return x.reshape(shape)


@grading_rule(aten.constant_pad_nd)
def pad(rules: GradingRules, x: Tensor, padding: list[int], value: float = 0) -> Tensor:
    """Entries around others."""
    padded: Tensor = aten.constant_pad_nd(x, padding, rules.grading.degree_of(value))
    return padded


@grading_rule(aten.as_strided.default)
def as_strided(rules: GradingRules, x: Tensor, size: list[int], *rest: Any) -> Tensor:
    """Entries by their place in memory; degrees that repeat share theirs."""
    return x.contiguous().as_strided(size, *rest)


@grading_rule(aten.tril, aten.triu, aten.diag_embed)
def place_among_zeros(rules: GradingRules, x: Tensor, *rest: Any) -> Tensor:
    """Entries where they are or on a diagonal, with zeros everywhere else."""
    packet = getattr(aten, rules.operation.removeprefix("aten."))
    from_zero: Tensor = packet(x - ANY, *rest)  # what the operation fills with zeros is ANY
    return from_zero + ANY


def _move(operation: Any) -> GradingRule:
    parameters = arguments_of(operation)

    def move(rules: GradingRules, *arguments: Any) -> Any:
        """The same entries elsewhere."""
        named = list(zip(parameters, arguments, strict=True))
        positional = [value for parameter, value in named if not parameter.kwarg_only]
        keywords = {p.name: value for p, value in named if p.kwarg_only}
        return operation(*positional, **keywords)

    return move


def _register_moves() -> None:
    for operation in (
        *(aten.permute.default, aten.t.default, aten.transpose.int, aten.unsqueeze.default),
        *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default),
        *(aten.repeat.default, aten.slice.Tensor, aten.select.int, aten.unbind.int),
        *(aten.split.Tensor, aten.unsafe_split.Tensor, aten.split_with_sizes.default),
        *(aten.unsafe_split_with_sizes.default, aten.cat.default, aten.stack.default),
        *(aten.diagonal.default, aten.flip.default, aten.roll.default, aten.unfold.default),
        *(aten.select_scatter.default, aten.slice_scatter.default, aten.diagonal_scatter.default),
    ):
        grading_rule(operation)(_move(operation))
    # The in-place variant of this one alone has another overload.
    grading_rule(aten.transpose_.default)(_move(aten.transpose.int))


_register_moves()
