"""The numerical check: what passes, what is refused, and in which words."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import normal, regression
from problems import enumerated_mixture
from pyro.infer import config_enumerate
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.verification import SymmetryVerificationError, check_groups, checks, confirm
from pyro_perm.verification.log_density import LogDensity, Point
from pyro_perm.verification.moves import apply_all, random_element

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


def test_enumerated_variables_are_summed_out() -> None:
    PermutationSymmetry({"labels": {"weights": 0, "loc": 0}}).verify(enumerated_mixture, Y)
    with pytest.raises(SymmetryVerificationError, match="site 'all sites with enum"):
        PermutationSymmetry({"labels": {"loc": 0}}).verify(enumerated_mixture, Y)


def test_a_check_that_proves_nothing_says_so() -> None:
    def dead(x: Tensor) -> None:
        h = torch.relu(x @ normal("w1", 3, 4) - 1e9)
        pyro.sample("y", dist.Normal(h @ normal("w2", 4), 1.0).to_event(1), obs=Y)

    symmetry = PermutationSymmetry({"hidden": {"w1": 1, "w2": 0}})
    with pytest.warns(
        UserWarning,
        match=r"group 'hidden' leaves the log joint as it is, up to the .* nats that "
        r"rounding errors explain, but so does the group without axis 0 "
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


def test_an_error_of_the_model_is_not_taken_for_a_lack_of_precision() -> None:
    """At the second point the model fails, in whatever precision."""
    runs: list[int] = []

    def diverging(x: Tensor) -> None:
        runs.append(len(runs))
        if len(runs) > 3:
            raise RuntimeError("the solver diverged")
        model(x)

    with pytest.raises(RuntimeError, match="the solver diverged"):
        PermutationSymmetry(SPEC).verify(diverging, X)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no memory left"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory"),
        ValueError("mine"),
    ],
)
def test_only_errors_of_types_are_a_lack_of_precision(error: Exception) -> None:
    def failing(x: Tensor) -> None:
        h = torch.tanh(x @ normal("w1", 3, 4))
        if h.dtype == torch.float64:
            raise error
        pyro.sample("y", dist.Normal(h.sum(1), 1.0).to_event(1), obs=Y.float())

    torch.set_default_dtype(torch.float32)
    with pytest.raises(type(error), match=str(error)):
        PermutationSymmetry({"hidden": {"w1": -1}}).verify(failing, X.float())


def scaled(*degrees: int, permute: bool = True) -> dict[str, dict[str, pp.Axis]]:
    """A spec that rescales the units of one hidden layer."""
    return {
        "hidden": {
            site: pp.Axis(-1, scale=degree, permute=permute)
            for site, degree in zip(("w1", "b1", "w2"), degrees, strict=True)
        }
    }


def rectifiers(
    x: Tensor,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    scale: Tensor | float = 1.0,
    hierarchical: bool = False,
) -> None:
    w1 = normal("w1", 3, 4)
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(4), scale).to_event(1))
    scale_of_w2 = 1.0 + w1.abs().sum(0) if hierarchical else torch.ones(4)
    w2 = pyro.sample("w2", dist.Normal(0.0, scale_of_w2).to_event(1))
    pyro.sample("y", dist.Normal(activation(x @ w1 + b1) @ w2, 1.0).to_event(1), obs=Y)


@pytest.mark.parametrize("degrees", [(1, 1, -1), (-1, -1, 1), (2, 2, -2)])
def test_scales_leave_the_likelihood_alone(degrees: tuple[int, ...]) -> None:
    checks = check_groups(PermutationSymmetry(scaled(*degrees)), rectifiers, X)
    assert [check.action for check in checks] == ["permute", "rescale"]
    assert all(check.passed and check.is_effective for check in checks)
    assert "y" in checks[1].by_site


@pytest.mark.parametrize(
    ("degrees", "repair"),
    [
        ((1, 1, 1), "scale=-1 along axis -1 of site 'w2' would leave it alone"),
        ((1, 0, -1), "scale=1 along axis -1 of site 'b1' would leave it alone"),
        ((2, 2, -1), "scale=-2 along axis -1 of site 'w2' would leave it alone"),
        ((1, 1, 0), "scale=-1 along axis -1 of site 'w2' would leave it alone"),
        (
            (1, 2, 3),
            r"an activation is not homogeneous, or a scale is wrong or missing in "
            r"w1\[Axis\(-1, scale=1\)\], b1",
        ),
    ],
)
def test_a_wrong_scale_is_refused_and_mended(degrees: tuple[int, ...], repair: str) -> None:
    with pytest.raises(
        SymmetryVerificationError,
        match=r"^rescaling the units of group 'hidden' changes the likelihood by \d.* nats \(mis-t"
        rf"ied control \d.*\): the log-probability of site 'y' by .* nats; {repair}",
    ):
        PermutationSymmetry(scaled(*degrees)).verify(rectifiers, X)


def test_a_site_that_scales_forget_is_named() -> None:
    axes = {"w1": pp.Axis(-1, scale=1, permute=False), "w2": pp.Axis(-1, scale=-1, permute=False)}
    with pytest.raises(SymmetryVerificationError, match="scale=1 along axis -1 of site 'b1' would"):
        PermutationSymmetry({"hidden": axes}).verify(rectifiers, X)


def test_scales_of_an_activation_that_is_not_homogeneous_are_refused() -> None:
    with pytest.raises(SymmetryVerificationError, match="an activation is not homogeneous, or"):
        PermutationSymmetry(scaled(1, 1, -1)).verify(rectifiers, X, torch.tanh)


def test_units_of_unequal_priors_are_rescaled_if_nobody_permutes_them() -> None:
    unequal = torch.tensor([1.0, 2.0, 3.0, 4.0])
    PermutationSymmetry(scaled(1, 1, -1, permute=False)).verify(rectifiers, X, scale=unequal)
    with pytest.raises(SymmetryVerificationError, match="the prior of site 'b1' is not exchangea"):
        PermutationSymmetry(scaled(1, 1, -1)).verify(rectifiers, X, scale=unequal)


def test_a_prior_that_depends_on_a_site_that_is_rescaled_is_named() -> None:
    """The prior of w2 would be exempt, but not from what happens to w1."""
    with pytest.raises(
        SymmetryVerificationError,
        match="the prior of site 'w2' depends on another site that the group rescales",
    ):
        PermutationSymmetry(scaled(1, 1, -1)).verify(rectifiers, X, hierarchical=True)


def test_a_site_whose_prior_is_no_density_on_the_reals_cannot_be_rescaled() -> None:
    def positive(x: Tensor) -> None:
        w2 = pyro.sample("w2", dist.HalfNormal(1.0).expand([4]).to_event(1))
        h = torch.relu(x @ normal("w1", 3, 4) + normal("b1", 4))
        pyro.sample("y", dist.Normal(h @ w2, 1.0).to_event(1), obs=Y)

    with pytest.raises(
        SymmetryVerificationError,
        match="group 'hidden' rescales site 'w2', but site 'w2' does not have the whole real line",
    ):
        PermutationSymmetry(scaled(1, 1, -1)).verify(positive, X)


def test_scales_that_prove_nothing_say_so() -> None:
    def dead(x: Tensor) -> None:
        h = torch.relu(x @ normal("w1", 3, 4) * 0.0)
        pyro.sample("y", dist.Normal(h @ normal("w2", 4), 1.0).to_event(1), obs=Y)

    axes = {"w1": pp.Axis(-1, scale=1, permute=False), "w2": pp.Axis(-1, scale=-1, permute=False)}
    with pytest.warns(UserWarning, match="leaves the likelihood as it is, .* but so does the"):
        PermutationSymmetry({"hidden": axes}).verify(dead, X)


@config_enumerate
def enumerated_noise(x: Tensor) -> None:
    h = torch.relu(x @ normal("w1", 3, 4))
    mean = h @ normal("w2", 4)
    with pyro.plate("data", len(x)):
        is_outlier = pyro.sample("is_outlier", dist.Bernoulli(0.1))
        pyro.sample("y", dist.Normal(mean, 1.0 + 9.0 * is_outlier), obs=Y)


def test_scales_of_models_with_enumerated_variables() -> None:
    right = {"w1": pp.Axis(-1, scale=1), "w2": pp.Axis(-1, scale=-1)}
    PermutationSymmetry({"hidden": right}).verify(enumerated_noise, X)
    wrong = {"w1": pp.Axis(-1, scale=1), "w2": pp.Axis(-1, scale=-2)}
    with pytest.raises(SymmetryVerificationError, match="scale=-1 along axis -1 of site 'w2'"):
        PermutationSymmetry({"hidden": wrong}).verify(enumerated_noise, X)


def test_elements_of_many_groups_act_at_once_as_one_after_the_other() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(3, 6)])
            self.last = nn.Linear(15, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([layer(x) for layer in self.layers], 1))

    network = Joined().double()
    symmetry = pp.find_symmetry(network, X, signs=True)
    group, values = symmetry.group, dict(network.state_dict())
    for with_signs in (False, True):
        moves = [
            move if with_signs else replace(move, motion=move.motion._replace(parts=()))
            for move in random_element(group)
        ]
        assert len(moves) == 3
        expected = dict(values)
        for move in moves:
            expected |= move.apply(expected)
        found = apply_all(moves, values)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert not torch.equal(found["last.weight"], values["last.weight"])


class Siren(nn.Module):
    """Sines of a high frequency, each of which makes rounding errors larger."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        sizes = [2] + [8] * depth
        self.layers = nn.ModuleList(nn.Linear(*each) for each in itertools.pairwise(sizes))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.head(x)


def test_rounding_errors_that_grow_are_not_taken_for_a_change() -> None:
    torch.manual_seed(0)
    net, x = Siren(8), torch.randn(5, 2)
    symmetry = pp.find_symmetry(net, x)
    assert symmetry.groups == {f"P{k}": 8 for k in range(8)}
    assert any(check.change > 1e-8 for check in check_groups(symmetry, net, x))
    group = "P6"
    wrong = {site: axis for site, axis in symmetry.spec[group].items() if site != "layers.6.bias"}
    with pytest.raises(SymmetryVerificationError, match=r"missing in layers\.6\.weight"):
        PermutationSymmetry({group: wrong}).verify(net, x)


def test_rounding_errors_that_grow_call_for_no_second_check_and_hide_no_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    net, x = Siren(7), torch.randn(5, 2)
    measured, measure = [], LogDensity.with_measured_rounding

    def note(self: LogDensity, point: Point, perturbed: Any) -> Point:
        measured.append(measure(self, point, perturbed))
        return measured[-1]

    def refuse(*args: Any) -> None:
        raise SymmetryVerificationError("checked a second time")

    monkeypatch.setattr(LogDensity, "with_measured_rounding", note)
    monkeypatch.setattr(checks, "verify", refuse)
    symmetry = pp.find_symmetry(net, x)
    assert len(symmetry.groups) == 7 and measured
    for group, sites in symmetry.spec.items():
        wrong = dict([*sites.items()][1:])
        with pytest.raises(SymmetryVerificationError, match="a second time"):
            confirm(PermutationSymmetry({**symmetry.spec, group: wrong}), net, x)


def test_rounding_errors_that_hide_a_change_are_named() -> None:
    torch.manual_seed(0)
    net, x = Siren(14), torch.randn(5, 2)
    with pytest.warns(UserWarning, match=r"leaves the log joint as it is, up to the \de\+0\d nats"):
        assert len(pp.find_symmetry(net, x).groups) == 14
