"""Cells of recurrent networks that accelerators compute by one operation, as several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def lstm_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    cell: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``aten::_thnn_fused_lstm_cell``: the next output, the next state, and the gates."""
    gates = _plus(input_gates, input_bias) + _plus(hidden_gates, hidden_bias)
    let_in, forget, new, let_out = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + let_in.sigmoid() * new.tanh()
    return let_out.sigmoid() * cell.tanh(), cell, gates


def gru_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    state: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``aten::_thnn_fused_gru_cell``: the next state, and the gates."""
    gates = _plus(input_gates, input_bias), _plus(hidden_gates, hidden_bias)
    (reset_in, keep_in, new_in), (reset, keep, new) = (each.chunk(3, 1) for each in gates)
    candidate = (new_in + (reset_in + reset).sigmoid() * new).tanh()
    return candidate + (keep_in + keep).sigmoid() * (state - candidate), gates[0] + gates[1]


FUSED_CELLS: dict[str, Callable[..., Any]] = {
    "aten::_thnn_fused_lstm_cell": lstm_cell,
    "aten::_thnn_fused_gru_cell": gru_cell,
}


def _plus(gates: Tensor, bias: Tensor | None) -> Tensor:
    return gates if bias is None else gates + bias
