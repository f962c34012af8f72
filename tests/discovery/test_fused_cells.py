"""Recurrent cells that accelerators compute by one operation have the symmetry of those that
processors compute by several."""

import pytest
import torch
from torch import nn

import pyro_perm as pp

UNITS = 3


def lstm_cell(input_gates, hidden_gates, cell, input_bias=None, hidden_bias=None):
    """What PyTorch's own cell makes of gates that are computed already."""
    gates = sum(g for g in (input_gates, hidden_gates, input_bias, hidden_bias) if g is not None)
    from_input, from_state = torch.eye(4 * UNITS).to(gates), gates.new_zeros(4 * UNITS, UNITS)
    state = (torch.zeros_like(cell), cell)
    output, cell = torch.lstm_cell(gates, state, from_input, from_state)
    return output, cell, gates


def gru_cell(input_gates, hidden_gates, state, input_bias=None, hidden_bias=None):
    """Likewise, from a state that the hidden gates are a linear function of."""
    inverse = torch.linalg.pinv(state) @ hidden_gates
    new = torch.gru_cell(
        *(input_gates, state, torch.eye(3 * UNITS).to(state), inverse.mT, input_bias, hidden_bias)
    )
    return new, torch.cat([input_gates, hidden_gates], 1)


@pytest.fixture(autouse=True)
def fused_cells_of_this_processor():
    library = torch.library.Library("aten", "IMPL")
    library.impl("_thnn_fused_lstm_cell", lstm_cell, "CPU")
    library.impl("_thnn_fused_gru_cell", gru_cell, "CPU")
    yield
    library._destroy()


class Recurrent(nn.Module):
    """Two steps of a cell, and a function of what it returns."""

    def __init__(self, kind, bias):
        super().__init__()
        self.cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[kind](2, UNITS, bias=bias)
        self.head = nn.Linear(UNITS, 2)
        self.kind = kind

    def forward(self, x):
        cell, first = self.cell, self.cell(x[0])
        biases = (cell.bias_ih, cell.bias_hh) if cell.bias else ()
        output, state = first if self.kind == "lstm" else (first, first)
        gates = x[1] @ cell.weight_ih.mT, output @ cell.weight_hh.mT
        fused = getattr(torch.ops.aten, f"_thnn_fused_{self.kind}_cell")
        return self.head(fused(*gates, state, *biases)[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_fused_cell_has_the_units_of_a_cell(kind, bias):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 2)
    found = pp.find_symmetry(Recurrent(kind, bias), x)
    assert found.groups == {"P0": UNITS}
    assert found.spec["P0"].keys() >= {"cell.weight_ih", "cell.weight_hh", "head.weight"}
