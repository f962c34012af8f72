"""What discovery refuses and why, what it leaves untouched, and what it misses."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import bayesian, groups_of, normal, regression, written
from marks import slow
from problems import enumerated_mixture
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_perm import AutoSymmetrized, init_to_fan_in
from pyro_perm.discovery import find_symmetry, register_axis_rule
from pyro_perm.discovery.permutations.rules import table
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.program.double_precision import DoublePrecision

X, Y = torch.linspace(-1, 1, 12).view(4, 3).double(), torch.linspace(0, 1, 4).double()


def observe(mean: Tensor) -> None:
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=Y)


def mlp(x: Tensor, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
    observe(activation(x @ normal("w1", 3, 4)) @ normal("w2", 4))


MLP = written(["w1[-1] w2[-1]"])


def test_the_values_of_a_guides_initialization_do_not_matter() -> None:
    zeros = init_to_value(values={"w1": torch.zeros(3, 4), "w2": torch.zeros(4)})
    guide = AutoNormal(mlp, init_loc_fn=zeros)
    assert groups_of(find_symmetry(guide.model, X)) == MLP


def test_sites_that_a_guide_does_not_see_stay_in_place() -> None:
    hidden = find_symmetry(poutine.block(mlp, hide=["w2"]), X)
    assert not hidden
    assert "hidden from the guide by poutine.block" in hidden.reasons["w2[-1]"]
    assert "hidden from the guide by poutine.block" in hidden.reasons["w1[-1]"]


def test_discrete_sites_may_be_hidden_if_they_are_enumerated() -> None:
    guide = AutoNormal(poutine.block(enumerated_mixture, expose=["weights", "loc"]))
    assert groups_of(find_symmetry(guide.model, Y)) == written(["weights[-1] loc[-1]"])


def test_discrete_sites_that_are_not_summed_out_stay_in_place() -> None:
    def mixture(x: Tensor) -> None:
        loc = normal("loc", 3)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    symmetry = find_symmetry(mixture, Y)
    assert not symmetry
    assert "indexed by aten.index" in symmetry.reasons["loc[-1]"]
    assert "infer={'enumerate': 'parallel'}" in symmetry.reasons["z[-1]"]


def test_the_program_around_is_left_as_it_was() -> None:
    pyro.param("untouched", torch.ones(2))
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    model, x, y = regression(net, torch.randn(5, 3))
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with pytest.warns(UserWarning, match=r"running_mean' \(and 1 more\) is updated by the model"):
        assert find_symmetry(model, x, y)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert list(pyro.get_param_store().keys()) == ["untouched"]
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert model.training


def test_single_precision_models() -> None:
    torch.set_default_dtype(torch.float32)
    model, x, y = regression(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 1)), torch.randn(5, 3))
    assert groups_of(find_symmetry(model, x, y)) == written(
        ["0.weight[-2] 0.bias[-1] 1.weight[-1]"]
    )


def with_parameter(x: Tensor) -> None:
    gain = pyro.param("gain", torch.ones(4))
    observe(torch.tanh(x @ normal("w1", 3, 4) * gain) @ normal("w2", 4))


def with_constrained_parameter(x: Tensor) -> None:
    gain = pyro.param("gain", torch.ones(4), constraint=dist.constraints.positive)
    observe(torch.tanh(x @ normal("w1", 3, 4) * gain) @ normal("w2", 4))


def with_closed_over_layer(x: Tensor) -> None:
    observe(torch.tanh(LAYER(x)) @ normal("w2", 4))


LAYER = nn.Linear(3, 4).double()


def non_exchangeable_prior(x: Tensor) -> None:
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(4), scale).to_event(1))
    observe(torch.tanh(x @ normal("w1", 3, 4)) @ w2)


def written_through_a_view(x: Tensor) -> None:
    h = torch.tanh(x @ normal("w1", 3, 4))
    h[:, 0] = h[:, 1]
    observe(h @ normal("w2", 4))


def preallocated(x: Tensor) -> None:
    w1, h = normal("w1", 3, 4), torch.zeros(4, 4)
    for j in range(4):
        h[:, j] = torch.tanh(x @ w1[:, j])
    observe(h @ normal("w2", 4))


def own_factor(x: Tensor) -> None:
    w1 = normal("w1", 3, 4)
    pyro.factor("first", -(w1[0, 0] ** 2))
    observe(torch.tanh(x @ w1) @ normal("w2", 4))


@pytest.mark.parametrize(
    ("model", "axis", "reason"),
    [
        (mlp, "w1[-2]", "tied to dim 1 of argument 0, which is not a latent site (test_find"),
        (with_parameter, "w2[-1]", "tied to dim 0 of parameter 'gain', which is not a latent"),
        (with_constrained_parameter, "w2[-1]", "tied to dim 0 of parameter 'gain', which is not"),
        (with_closed_over_layer, "w2[-1]", "tied to dim 0 of parameter 'bias', which is not a"),
        (non_exchangeable_prior, "w1[-1]", "the 4 units fall into classes of size 1, 1, 1, 1"),
        (non_exchangeable_prior, "w2[-1]", "(log_prob of site 'w2')"),
        (preallocated, "w2[-1]", "written in place through a view; use torch.stack"),
    ],
)
def test_reasons(model: Callable[..., Any], axis: str, reason: str) -> None:
    assert reason in find_symmetry(model, X).reasons[axis]


@pytest.mark.parametrize(
    ("activation", "reason"),
    [
        (lambda h: h.cumsum(1), "order-dependent aten.cumsum (test_find.py:"),
        (lambda h: h + h.roll(1, 1), "combined by aten.add"),
        (lambda h: h + torch.arange(4.0), "the model tells its units apart"),
        (lambda h: h * torch.rand(4), "random numbers drawn by aten::rand"),
        (nn.RReLU(), "argument of the random aten::rrelu_with_noise"),
        (lambda h: h.tril(), "order-dependent aten.tril"),
        (lambda h: h[:, h.sum(0) > -99.0], "selected by a mask"),
        (lambda h: h.kthvalue(2, 1)[0][:, None] * h, "no axis rule for aten.kthvalue"),
        (lambda h: h + torch.tensor(h.tolist()), "no axis rule for Tensor.tolist"),
        (lambda h: h + torch.from_numpy(h.numpy().copy()), "no axis rule for Tensor.numpy"),
        (lambda h: h + torch.eye(4)[h.argmax(1)], "order-dependent aten.argmax"),
    ],
)
def test_activations_that_depend_on_the_order(activation: Any, reason: str) -> None:
    symmetry = find_symmetry(mlp, X, activation)
    assert not symmetry
    assert reason in symmetry.reasons["w1[-1]"]


def test_a_unit_with_a_role_of_its_own_is_left_out() -> None:
    assert groups_of(find_symmetry(own_factor, X)) == written(["w1[-1:1..3] w2[-1:1..3]"])


def test_what_is_written_through_a_view_has_a_role_of_its_own() -> None:
    found = find_symmetry(written_through_a_view, X)
    assert groups_of(found) == written(["w1[-1:2..3] w2[-1:2..3]"])


def test_data_that_is_not_a_tensor_is_not_taken_for_a_constant() -> None:
    def model(x: Any) -> None:
        observe(torch.tanh(torch.as_tensor(x) @ normal("w", 2)))

    equal_columns = np.ones((4, 2)) * np.arange(4.0)[:, None]
    for data in (equal_columns, equal_columns.tolist()):
        symmetry = find_symmetry(model, data)
        assert not symmetry
        assert "may come from argument 0; pass a tensor" in symmetry.reasons["w[-1]"]


def test_dropout_is_named_once_with_its_mend() -> None:
    net = nn.Sequential(
        *(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 1))
    ).double()
    model, x, y = regression(net, torch.randn(5, 3))
    with pytest.warns(UserWarning, match="dropout at .* draws a random mask") as caught:
        symmetry = find_symmetry(model, x, y)
    assert len(caught) == 1 and "call model.eval()" in str(caught[0].message)
    assert not symmetry
    assert "the random mask of dropout" in symmetry.reasons["net.0.bias[-1]"]
    assert symmetry.summary().count("random mask") == 1
    assert len(find_symmetry(model.eval(), x, y).groups) == 2


def test_a_branch_on_a_value_is_reported() -> None:
    def branching(h: Tensor) -> Tensor:
        return h * 2 if bool(h.sum() > 100) else h

    with pytest.warns(UserWarning, match=r"reads a value at test_find.py:\d+; only the"):
        assert groups_of(find_symmetry(mlp, X, branching)) == MLP


def test_a_branch_on_one_unit_freezes_it() -> None:
    def branching(h: Tensor) -> Tensor:
        return h if bool(h[0, 0] > 100) else h * 2

    with pytest.warns(UserWarning, match="reads a value"):
        found = find_symmetry(mlp, X, branching)
    assert groups_of(found) == written(["w1[-1:1..3] w2[-1:1..3]"])


@pytest.fixture
def scale_rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))
    library = torch.library.Library("pyro_perm_tests", "FRAGMENT")
    library.define("scale_rows(Tensor x, Tensor scale) -> Tensor")
    library.impl("scale_rows", lambda x, scale: x * scale, "CPU")
    yield torch.ops.pyro_perm_tests.scale_rows
    library._destroy()


def test_an_unknown_operation_freezes_until_it_has_a_rule(scale_rows: Any) -> None:
    def activation(h: Tensor) -> Tensor:
        return scale_rows(h, torch.ones(4))

    symmetry = find_symmetry(mlp, X, activation)
    assert not symmetry
    assert "no axis rule for pyro_perm_tests.scale_rows" in symmetry.reasons["w1[-1]"]
    assert "use register_axis_rule" in symmetry.reasons["w2[-1]"]

    @register_axis_rule(scale_rows)
    def rule(rules: table.AxisRules, x: table.AxisTensor, scale: table.AxisTensor) -> table.Axes:
        rules.tie(x[1], scale[0])
        return list(x)

    assert groups_of(find_symmetry(mlp, X, activation)) == MLP


def test_a_rule_is_for_an_operator() -> None:
    with pytest.raises(TypeError, match=r"takes operators such as torch\.ops\.aten\.mm, but got"):
        register_axis_rule(torch.tanh)


def predictions(x: Tensor) -> Tensor:
    return torch.tanh(x @ normal("w1", 3, 4)) @ normal("w2", 4, 2)


def test_what_is_not_observed_but_returned_must_not_change() -> None:
    symmetry = find_symmetry(predictions, X)
    assert groups_of(symmetry) == written(["w1[-1] w2[-2]"])
    assert "the observed value of site 'returned value 0'" in symmetry.reasons["w2[-1]"]


def test_a_prior_alone_is_reported() -> None:
    with pytest.warns(UserWarning, match="this is the symmetry of its prior alone; pass the obs"):
        symmetry = find_symmetry(lambda: normal("w", 3))
    assert groups_of(symmetry) == written(["w[-1]"])


def test_a_guide_may_be_part_of_the_models_module() -> None:
    """Then Pyro caches the model's sites while the guide runs."""
    whole = PyroModule()
    whole.net = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    whole.guide = AutoSymmetrized(AutoNormal(whole.net, init_loc_fn=init_to_fan_in))
    whole.guide(X)
    expected = written(["0.weight[-2] 0.bias[-1] 2.weight[-1]"])
    assert groups_of(whole.guide.symmetry) == expected


def test_a_model_without_latent_sites() -> None:
    assert not find_symmetry(lambda x: observe(x[:, 0]), X)


# The exhaustive oracle: every combination of one permutation for each axis of each site, checked
# numerically; those that leave the log joint invariant are the true group.


def two_layers(x: Tensor) -> None:
    h = torch.tanh(x[:, :1] @ normal("w1", 1, 2))
    observe(torch.tanh(h @ normal("w2", 2, 3)) @ normal("w3", 3))


def recurrent(x: Tensor) -> None:
    w, h = normal("w", 2, 2), torch.zeros(4, 2)
    for t in range(3):
        h = torch.tanh(x[:, t : t + 1] * normal(f"u{t}", 2) + h @ w.T)
    observe(h @ normal("o", 2))


def two_kinds(x: Tensor) -> None:
    scale = torch.tensor([1.0, 1.0, 2.0, 2.0])
    w = pyro.sample("w", dist.Normal(torch.zeros(4), scale).to_event(1))
    observe(torch.tanh(x[:, :1] * normal("u", 4)) @ w)


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    components = dist.Normal(normal("loc", 3), 1.0)
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x[0, 0])


def gram(x: Tensor) -> None:
    w = normal("w", 3, 2)
    observe(((x @ (w @ w.T + torch.eye(3))) ** 2).sum(-1))


def strided(x: Tensor) -> None:
    h = torch.tanh(x[:, :1] * normal("u", 4))
    observe(h[:, ::2].sum(-1) + 2 * h[:, 1::2].sum(-1))


def interleaved_gates(x: Tensor) -> None:
    h = x[:, :1] * normal("u", 4)
    observe((h[:, ::2] * h[:, 1::2].sigmoid()) @ normal("w", 2))


def separate_sites(x: Tensor) -> None:
    locs = torch.stack([pyro.sample(f"loc{k}", dist.Normal(0.0, 1.0)) for k in range(3)])
    observe(torch.tanh(x[:, :1] - locs).sum(-1) + (normal("w", 2) ** 2).sum())


def true_order(model: Callable[..., Any]) -> int:
    """Number of elements of the group of all permutations along axes that leave a model alone."""
    with DoublePrecision():
        trace = poutine.trace(model).get_trace(X)
        values = {
            name: torch.distributions.biject_to(site["fn"].support)(
                torch.randn_like(
                    torch.distributions.biject_to(site["fn"].support).inv(site["value"])
                )
            )
            for name, site in trace.iter_stochastic_nodes()
        }
        axes = [
            (name, dim, itertools.permutations(range(size)))
            for name, value in values.items()
            for dim, size in enumerate(value.shape)
        ]

        def log_joint(latents: dict[str, Tensor]) -> float:
            conditioned = poutine.condition(model, data=latents)
            return float(poutine.trace(conditioned).get_trace(X).log_prob_sum())

        before, order = log_joint(values), 0
        for chosen in itertools.product(*(permutations for _, _, permutations in axes)):
            moved = dict(values)
            for (name, dim, _), permutation in zip(axes, chosen, strict=True):
                moved[name] = moved[name].index_select(dim, torch.tensor(permutation))
            order += abs(log_joint(moved) - before) < 1e-10
        return order


@pytest.mark.parametrize(
    ("model", "missed"),
    [
        *((mixture, 1), (gram, 1), (interleaved_gates, 1)),
        *slow((two_layers, 1), (recurrent, 1), (two_kinds, 1)),
        (strided, 2),  # even and odd places are permuted alike
        (separate_sites, 1),  # not axes, so no permutation along axes either
    ],
)
def test_the_exhaustive_oracle(model: Callable[..., Any], missed: int) -> None:
    found = math.exp(find_symmetry(model, X).log_order)
    assert true_order(model) == round(found) * missed


def test_found_groups_verify_as_written_by_hand() -> None:
    found = find_symmetry(two_layers, X)
    PermutationSymmetry(found.spec).verify(two_layers, X)
