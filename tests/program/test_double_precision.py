"""Single-precision networks run in double precision, whatever their operations check."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.program.double_precision import DoublePrecision


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.PReLU(3), (2, 3)),
        (nn.Conv1d(3, 2, 3), (2, 3, 5)),
        (nn.Conv2d(3, 2, 3, padding="same"), (2, 3, 5, 5)),
        (nn.Conv3d(3, 2, 3), (2, 3, 5, 5, 5)),
        (nn.ConvTranspose1d(3, 2, 3), (2, 3, 5)),
        (nn.ConvTranspose2d(3, 2, 3), (2, 3, 5, 5)),
        (nn.ConvTranspose3d(3, 2, 3), (2, 3, 5, 5, 5)),
        (nn.Bilinear(3, 3, 2), (4, 3)),
        (nn.LSTM(3, 2), (4, 2, 3)),
        (nn.RMSNorm(3), (4, 3)),
        (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (2, 3, 5)),
    ],
    ids=lambda case: type(case).__name__,
)
def test_plain_networks_of_single_precision_are_checked_in_double(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer.float()

        def forward(self, x: Tensor) -> Tensor:
            args = (x, x) if isinstance(layer, nn.Bilinear) else (x,)
            out = self.layer(*args)
            return out[0] if isinstance(out, tuple) else out

    x = torch.randn(shape, dtype=torch.float32)
    pp.find_symmetry(First().eval(), x)  # A warning would tell of single precision.


def test_functions_that_compare_types_before_they_dispatch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 1)).float()
    x = torch.randn(5, 3, dtype=torch.float32)
    with torch.no_grad():
        with DoublePrecision() as precision:
            found = net(precision.double(x))
        expected = net.double()(x.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)
