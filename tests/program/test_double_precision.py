"""Single-precision networks run in double precision, whatever their operations check."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.program.double_precision import DoublePrecision
from pyro_perm.verification import check_groups


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


@pytest.mark.parametrize(
    ("function", "is_needed"),
    [
        (lambda x: torch.where(x > 0, x, torch.zeros(3)).sum(), False),
        (lambda x: x.float().double(), True),
        (lambda x: x + torch.ones(3, dtype=torch.float32), True),
        (lambda x: bool(x.sum() > 0), True),
        (lambda x: torch.equal(x, x), True),
        (lambda x: x[x > 0].shape, True),
        (lambda x: x.tolist(), True),
        (lambda x: x.numpy().sum(), True),
    ],
    ids=["double", "type", "constant", "branch", "number", "shape", "list", "array"],
)
def test_is_needed_where_types_or_values_may_lead_to_other_precisions(
    function: Callable[[Tensor], object], is_needed: bool
) -> None:
    with DoublePrecision() as precision:
        function(torch.tensor([-1.0, 0.5, 2.0]))
    assert precision.is_needed == is_needed


def test_branches_that_lead_to_single_precision_are_checked_in_double() -> None:
    units = 5
    branches = []

    def model(x: Tensor, y: Tensor) -> None:
        shift = pyro.sample("shift", Normal(0.0, 1e-3))
        w = pyro.sample("w", Normal(0.0, 1.0).expand([units, 2]).to_event(2))
        v = pyro.sample("v", Normal(0.0, 1.0).expand([units]).to_event(1))
        hidden = torch.tanh(x @ w.T)
        branches.append(bool(shift.abs() > 0.01))  # Where priors draw it, this is never so.
        f = (hidden.float() @ v.float()).double() if branches[-1] else hidden @ v
        pyro.sample("y", Normal(f, 0.1).to_event(1), obs=y)

    symmetry = pp.PermutationSymmetry({"hidden": {"w": -2, "v": -1}})
    (check,) = check_groups(symmetry, model, torch.randn(6, 2), torch.randn(6))
    assert set(branches) == {True, False}
    assert check.change < 1e-10
