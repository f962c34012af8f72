"""The one axis that is missing in a spec, or wrong, is named by the check that fails."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import one_hidden_layer
from torch import Tensor

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.verification import SymmetryVerificationError

PROBLEM = one_hidden_layer(4)
X, Y = torch.linspace(-1, 1, 12).view(4, 3).double(), torch.linspace(0, 1, 4).double()


def hierarchical(x: Tensor, y: Tensor) -> None:
    """Square weights, with a positive scale for each unit."""
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(3, 3), scale).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1).sum(-1), 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "args", "sites", "advice"),
    [
        (PROBLEM.model, PROBLEM.args, {"w1": 0, "w2": 1}, "axis -1 of site 'b1' too"),
        (PROBLEM.model, PROBLEM.args, {"b1": 0, "w2": 1}, "axis -2 of site 'w1' too"),
        (hierarchical, (X, Y), {"w1": 1}, "axis -1 of site 'scale' too"),
        (hierarchical, (X, Y), {"w1": 0, "scale": 0}, "axis -1 of site 'w1' in place of axis -2"),
    ],
)
def test_the_axis_that_is_missing_or_wrong_is_named(
    program: Any, args: Any, sites: Any, advice: str
) -> None:
    message = rf"wrong or missing in .*: to permute {advice} would leave it alone$"
    with pytest.raises(SymmetryVerificationError, match=message):
        PermutationSymmetry({"hidden": sites}).verify(program, *args)


def test_nothing_is_named_where_more_than_one_axis_is_missing() -> None:
    with pytest.raises(SymmetryVerificationError, match=r"an axis is wrong or missing in b1\[0\]$"):
        PermutationSymmetry({"hidden": {"b1": 0}}).verify(PROBLEM.model, *PROBLEM.args)
