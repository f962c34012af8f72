"""The numerical check: what passes, what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import normal, regression
from pyro.infer import config_enumerate
from torch import Tensor, nn

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.verification import SymmetryVerificationError, check_groups

X, Y = torch.linspace(-1, 1, 12).view(4, 3).double(), torch.linspace(0, 1, 4).double()
SPEC = {"hidden": {"w1": -1, "b1": 0, "w2": 0}}


def model(x: Tensor, scale: Tensor | float = 1.0) -> None:
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(4), scale).to_event(1))
    mean = torch.tanh(x @ normal("w1", 3, 4) + b1) @ normal("w2", 4)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=Y)


def test_a_right_spec_passes_with_an_effective_control() -> None:
    symmetry = PermutationSymmetry(SPEC)
    (check,) = check_groups(symmetry, model, X)
    assert check.passed and check.is_effective
    assert check.control is not None and check.change < 1e-9 * check.control
    assert symmetry.groups == {"hidden": 4}


@pytest.mark.parametrize(
    "spec",
    [
        {"hidden": {"w1": -1, "w2": 0}},
        {"hidden": {"w1": -1, "b1": 0}},
        {"hidden": {"w1": 0}},
        {"hidden": SPEC["hidden"], "input": {"w1": 0}},
    ],
)
def test_a_wrong_spec_is_refused(spec: Any) -> None:
    with pytest.raises(SymmetryVerificationError, match=r"group '(hidden|input)' changes the log"):
        PermutationSymmetry(spec).verify(model, X)


def test_the_message_names_group_control_sites_and_axes() -> None:
    with pytest.raises(
        SymmetryVerificationError,
        match=r"group 'hidden' changes the log joint by \d.* nats \(mis-tied control \d.*\): the "
        r"log-probability of site 'y' by .* nats; an axis is wrong or missing in w1\[-1\], w2\[0\]",
    ):
        PermutationSymmetry({"hidden": {"w1": -1, "w2": 0}}).verify(model, X)


def test_a_prior_that_is_not_exchangeable_is_named() -> None:
    with pytest.raises(SymmetryVerificationError, match="the prior of site 'b1' is not exchangea"):
        PermutationSymmetry(SPEC).verify(model, X, torch.tensor([1.0, 1.0, 1.0, 2.0]))


def test_a_tiny_violation_is_seen() -> None:
    with pytest.raises(SymmetryVerificationError):
        PermutationSymmetry(SPEC).verify(model, X, torch.tensor([1.0, 1.0, 1.0, 1.0 + 1e-7]))


def test_single_precision_models_are_checked_in_double_precision() -> None:
    torch.set_default_dtype(torch.float32)
    net = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 1))
    bayesian_model, x, y = regression(net, torch.randn(20, 3))
    hidden = {"net.0.weight": 0, "net.0.bias": 0, "net.2.weight": 1}
    (check,) = check_groups(PermutationSymmetry({"h": hidden}), bayesian_model, x, y)
    assert check.passed and check.is_effective
    assert check.change < 1e-9


def test_an_operation_in_single_precision_only_is_checked_in_it() -> None:
    def single(x: Tensor) -> None:
        h = torch.tanh(x @ normal("w1", 3, 4))
        if h.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float")
        pyro.sample("y", dist.Normal(h @ normal("w2", 4), 1.0).to_event(1), obs=Y.float())

    torch.set_default_dtype(torch.float32)
    message = r"does not run in double precision.*RuntimeError: expected scalar type Float\)$"
    with pytest.warns(UserWarning, match=message):
        PermutationSymmetry({"h": {"w1": 1, "w2": 0}}).verify(single, X.float())
    with pytest.warns(UserWarning, match=message), pytest.raises(SymmetryVerificationError):
        PermutationSymmetry({"h": {"w1": 1}}).verify(single, X.float())


@config_enumerate
def enumerated(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    loc = normal("loc", 3)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def test_enumerated_variables_are_summed_out() -> None:
    PermutationSymmetry({"labels": {"weights": 0, "loc": 0}}).verify(enumerated, Y)
    with pytest.raises(SymmetryVerificationError, match="site 'all sites with enum"):
        PermutationSymmetry({"labels": {"loc": 0}}).verify(enumerated, Y)


def test_a_check_that_proves_nothing_says_so() -> None:
    def dead(x: Tensor) -> None:
        h = torch.relu(x @ normal("w1", 3, 4) - 1e9)
        pyro.sample("y", dist.Normal(h @ normal("w2", 4), 1.0).to_event(1), obs=Y)

    symmetry = PermutationSymmetry({"hidden": {"w1": 1, "w2": 0}})
    with pytest.warns(
        UserWarning,
        match=r"group 'hidden' leaves the log joint as it is, but so does the group without axis 0 "
        r"of site 'w2': the check could not have noticed a wrong spec",
    ):
        symmetry.verify(dead, X)


def test_a_group_with_one_axis_has_no_control() -> None:
    def alone() -> None:
        pyro.factor("f", normal("w", 3).sum())

    (check,) = check_groups(PermutationSymmetry({"g": {"w": 0}}), alone)
    assert check.passed and check.control is None and not check.is_effective


def test_a_log_joint_that_is_never_finite_is_reported() -> None:
    def impossible() -> None:
        pyro.factor("f", normal("w", 3).sum() - float("inf"))

    with pytest.raises(SymmetryVerificationError, match="not finite at 20 random points"):
        PermutationSymmetry({"g": {"w": 0}}).verify(impossible)
