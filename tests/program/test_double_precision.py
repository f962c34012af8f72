"""Single-precision networks run in double precision, whatever their operations check."""

from __future__ import annotations

import torch
from torch import nn

from pyro_perm.program.double_precision import DoublePrecision


def test_functions_that_compare_types_before_they_dispatch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 1)).float()
    x = torch.randn(5, 3, dtype=torch.float32)
    with torch.no_grad():
        with DoublePrecision() as precision:
            found = net(precision.double(x))
        expected = net.double()(x.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)
