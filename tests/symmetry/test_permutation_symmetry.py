"""The group and its action: laws, structure, batches, messages, exchange formats."""

from __future__ import annotations

import math
import timeit
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples
from pyro import poutine
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.symmetry import Axis
from pyro_perm.symmetry.binding import SiteShape

laws = settings(max_examples=examples(40))
BATCHES = [((), (4,)), ((4,), ()), ((4,), (4,)), ((2, 1), (3,)), ((3,), (2, 3))]
SEEDS = st.integers(0, 2**32 - 1)

# A three-unit group along a plain axis, gates and both axes of a recurrent weight; a group of two
# that shares the recurrent weight's first axis; a segment and a flattened channel axis.
SPEC = {
    "units": {"bias": 0, "gates": (Axis(0, outer=2), 1), "square": (-2, -1), "mixed": -1},
    "segment": {"mixed": Axis(0, index=range(1, 5)), "flat": Axis(0, inner=2)},
    "copies": {"gates": Axis(0, inner=3)},
}
SHAPES = {"bias": [3], "gates": [6, 3], "square": [3, 3], "mixed": [6, 3], "flat": [8]}


@pytest.fixture
def symmetry() -> PermutationSymmetry:
    return PermutationSymmetry(SPEC, shapes=SHAPES)


def values_of(batch: tuple[int, ...] = ()) -> dict[str, Tensor]:
    return {site: torch.randn(*batch, *shape) for site, shape in SHAPES.items()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_groups_and_order(symmetry: PermutationSymmetry) -> None:
    assert symmetry.groups == {"units": 3, "segment": 4, "copies": 2}
    assert symmetry.log_order == pytest.approx(math.log(6 * 24 * 2))
    assert symmetry.sites == ("bias", "gates", "square", "mixed", "flat")


@laws
@given(SEEDS)
def test_group_laws(seed: int) -> None:
    symmetry = PermutationSymmetry(SPEC, shapes=SHAPES)
    torch.manual_seed(seed)
    values = values_of()
    f, g, h = (symmetry.sample() for _ in range(3))
    compose, inverse = symmetry.compose, symmetry.inverse
    assert_equal(compose(compose(f, g), h), compose(f, compose(g, h)))
    assert_equal(compose(g, inverse(g)), compose(inverse(g), g))
    assert_equal(symmetry.apply(compose(g, inverse(g)), values), values)
    assert_equal(
        symmetry.apply(compose(f, g), values), symmetry.apply(f, symmetry.apply(g, values))
    )


def invariant(w: dict[str, Tensor]) -> Tensor:
    """A function of all sites that every element of the group leaves alone."""
    gates, mixed = w["gates"].unflatten(0, (2, 3)), w["mixed"]
    h = torch.tanh(w["bias"] + (gates @ w["bias"]).sum(0))
    h = torch.tanh(w["square"] @ h)
    middle = mixed[1:5] @ h
    flat = (middle[:, None] * w["flat"].view(4, 2)).sin().sum(0)
    return mixed[0] @ h - 2 * mixed[5] @ h + flat[0] - flat[1]


@laws
@given(SEEDS)
def test_an_invariant_function_is_invariant(seed: int) -> None:
    symmetry = PermutationSymmetry(SPEC, shapes=SHAPES)
    torch.manual_seed(seed)
    w, g = values_of(), symmetry.sample()
    torch.testing.assert_close(invariant(symmetry.apply(g, w)), invariant(w))


@pytest.mark.parametrize("axis", [Axis(0), Axis(0, inner=2), Axis(0, sign=True)])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("entries", [[1, 2, 3], [0, -4, 1]])
def test_entries_that_number_no_unit_are_refused(
    axis: Axis, batch: tuple[int, ...], entries: list[int]
) -> None:
    permutation = torch.stack([torch.arange(3), torch.tensor(entries)])
    permutation = permutation if batch else permutation[1]
    values = {"w": torch.randn(*batch, 3 * axis.inner)}
    symmetry = PermutationSymmetry({"g": {"w": axis}}, shapes={"w": [3 * axis.inner]})
    first = -3 if axis.sign else 0
    with pytest.raises(ValueError, match=f"group 'g': .* between {first} and 2"):
        symmetry.apply({"g": permutation}, values)


@laws
@given(SEEDS, st.sampled_from(BATCHES))
def test_batches_broadcast(seed: int, batches: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    symmetry = PermutationSymmetry(SPEC, shapes=SHAPES)
    torch.manual_seed(seed)
    elements, values = symmetry.sample(batches[0]), values_of(batches[1])
    moved = symmetry.apply(elements, values)
    batch = torch.broadcast_shapes(*batches)
    for index in torch.cartesian_prod(*map(torch.arange, batch)).view(-1, len(batch)).tolist():
        one_g = {k: p.expand(*batch, -1)[tuple(index)] for k, p in elements.items()}
        one_w = {k: v.expand(*batch, *SHAPES[k])[tuple(index)] for k, v in values.items()}
        one = {k: v.expand(*batch, *SHAPES[k])[tuple(index)] for k, v in moved.items()}
        assert_equal(symmetry.apply(one_g, one_w), one)


def test_generators_generate_the_whole_group() -> None:
    symmetry = PermutationSymmetry({"g": {"w": 0}}, shapes={"w": [4]})
    found = {tuple(range(4))}
    while True:
        larger = found | {
            tuple(torch.tensor(p)[g].tolist()) for p in found for _, g in symmetry.generators()
        }
        if larger == found:
            break
        found = larger
    assert len(found) == 24


def test_groups_that_are_left_out_do_not_move(symmetry: PermutationSymmetry) -> None:
    w = values_of()
    moved = symmetry.apply({"copies": torch.tensor([1, 0])}, w)
    assert torch.equal(moved["gates"], w["gates"].roll(3, 0))
    assert all(torch.equal(moved[site], w[site]) for site in w if site != "gates")


def test_axes_count_from_the_event_and_may_reach_into_plates() -> None:
    def model() -> None:
        with pyro.plate("units", 4):
            pyro.sample("w", dist.Normal(0.0, 1.0).expand([4, 3]).to_event(1))

    symmetry = PermutationSymmetry({"g": {"w": -2}, "h": {"w": 0}})
    symmetry.bind(poutine.trace(model).get_trace())
    assert symmetry.groups == {"g": 4, "h": 3}
    assert symmetry.site_rank("w") == 2 and symmetry.site_plates("w") == 1
    w = torch.randn(4, 3)
    g = {"g": torch.tensor([1, 0, 2, 3]), "h": torch.tensor([2, 0, 1])}
    assert torch.equal(symmetry.apply(g, {"w": w})["w"], w[g["g"]][:, g["h"]])


def model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("data", 6, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal((x @ w + b).sum(-1) + z, 1.0), obs=x[:, 0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"g": {}}, "group 'g' permutes no site"),
        ({"g": {"v": 0}}, "group 'g' names site 'v', which is not a site of the model"),
        ({"g": {"bb": 0}}, r"is not a site of the model \(did you mean 'b'\?\)"),
        ({"g": {"data": 0}}, "group 'g' names site 'data', which is a plate of the model"),
        ({"g": {"v": 0}}, r"latent sites are \['w', 'b', 'z'\]$"),
        ({"g": {"y": 0}}, "group 'g' names site 'y', which is observed by the model"),
        ({"g": {"z": -1}}, "site 'z' lies in the subsampled plate 'data'"),
        ({"g": {"w": 2}}, r"group 'g', site 'w': axis 2 is out of range for event shape \(3, 4\)"),
        ({"g": {"w": -1, "b": Axis(0, index=(0, 7))}}, "site 'b': axis .* index leaves the axis"),
        ({"g": {"w": Axis(1, inner=3)}}, "has 4 entries, which outer . inner = 3 does not divide"),
        ({"g": {"w": 0, "b": 0}}, "group 'g' has 3 units along axis 0 of site 'w', but 4 along"),
        ({"g": {"w": 1}, "h": {"w": 1}}, "group 'g' along axis -1 and group 'h' .* do not commute"),
    ],
)
def test_a_spec_that_does_not_fit_is_explained(spec: Any, message: str) -> None:
    x = torch.randn(3, 3)
    with pytest.raises(ValueError, match=message):
        PermutationSymmetry(spec).bind(poutine.trace(model).get_trace(x))


def test_messages_of_the_action(symmetry: PermutationSymmetry) -> None:
    with pytest.raises(ValueError, match="no group is called 'unit'"):
        symmetry.apply({"unit": torch.arange(3)}, {})
    with pytest.raises(ValueError, match="site 'bias': axis -1 has 3 units, but the permut"):
        symmetry.apply({"units": torch.arange(2)}, values_of())
    with pytest.raises(ValueError, match="cannot compose groups"):
        symmetry.compose({"units": torch.arange(3)}, {})
    with pytest.raises(ValueError, match="group sizes are not known yet"):
        PermutationSymmetry(SPEC).sample()
    with pytest.raises(ValueError, match="shapes has no entry for site 'bias'"):
        PermutationSymmetry(SPEC, shapes={})
    with pytest.raises(ValueError, match="outer and inner must be at least 1"):
        Axis(0, outer=0)
    with pytest.raises(ValueError, match="index names a coordinate twice"):
        Axis(0, index=(1, 1))


def test_another_shape_is_refused() -> None:
    symmetry = PermutationSymmetry({"g": {"w": -1, "b": -1}}, shapes={"w": [5, 4], "b": [4]})
    with pytest.raises(
        ValueError, match=r"site 'w' has shape \(3, 4\), but .* \(5, 4\): leave out"
    ):
        symmetry.bind(poutine.trace(model).get_trace(torch.randn(3, 3)))


def test_git_rebasin_dictionaries_come_back_as_they_were() -> None:
    axes_to_perm = {
        "fc1.weight": ("P0", None),
        "fc1.bias": ("P0",),
        "rnn.weight": ("P1", "P1"),
        "fc2.weight": (None, "P0"),
    }
    symmetry = PermutationSymmetry.from_axes_to_perm(axes_to_perm)
    shapes = {"fc1.weight": [5, 2], "fc1.bias": [5], "rnn.weight": [3, 3], "fc2.weight": [1, 5]}
    bound = PermutationSymmetry(symmetry.spec, shapes=shapes)
    assert bound.groups == {"P0": 5, "P1": 3}
    assert bound.axes_to_perm == axes_to_perm


def test_structured_axes_have_no_git_rebasin_dictionary(symmetry: PermutationSymmetry) -> None:
    with pytest.raises(ValueError, match=r"group 'units', site 'gates'.*use to_json"):
        _ = symmetry.axes_to_perm


def test_json_round_trip(symmetry: PermutationSymmetry) -> None:
    copy = PermutationSymmetry.from_json(symmetry.to_json())
    assert copy.spec == symmetry.spec and copy.groups == symmetry.groups
    g, w = symmetry.sample(), values_of()
    assert_equal(copy.apply(g, w), symmetry.apply(g, w))
    unbound = PermutationSymmetry.from_json(PermutationSymmetry(SPEC, reasons={"a": "b"}).to_json())
    assert not unbound.is_bound and unbound.reasons == {"a": "b"}
    simplex = {"weights": SiteShape((3,), 1, is_simplex=True)}
    labels = PermutationSymmetry({"labels": {"weights": 0}})
    labels._settle(simplex)
    assert PermutationSymmetry.from_json(labels.to_json()).is_simplex("weights")
    with pytest.raises(ValueError, match="write one with to_json"):
        PermutationSymmetry.from_json("{}")


def test_subset(symmetry: PermutationSymmetry) -> None:
    assert symmetry.subset(include=["units", "copies"]).groups == {"units": 3, "copies": 2}
    rest = symmetry.subset(exclude=["units"])
    assert rest.groups == {"segment": 4, "copies": 2}
    assert "left out by subset()" in rest.reasons["bias[0]"]
    assert not symmetry.subset(include=[])
    with pytest.raises(ValueError, match="no group is called 'Units'"):
        symmetry.subset(exclude=["Units"])


def test_summary_lists_groups_and_reasons() -> None:
    symmetry = PermutationSymmetry(
        {"hidden": {"w1": -2, "w2": -1}},
        shapes={"w1": [5, 2], "w2": [1, 5]},
        reasons={"w1[-1]": "tied to dim 1 of argument 0"},
    )
    assert symmetry.summary().splitlines() == [
        "group   size  log n!  axes",
        "hidden     5     4.8  w1[-2], w2[-1]",
        "log |G| = 4.8 nats",
        "",
        "not permuted:",
        "  w1[-1] is fixed: tied to dim 1 of argument 0",
    ]


def test_summary_says_a_reason_once() -> None:
    reasons = {f"w{i}[-1]": "tied to dim 1 of the random mask" for i in range(8)}
    summary = PermutationSymmetry(
        {}, shapes={}, reasons=reasons | {"b[-1]": "of its own"}
    ).summary()
    masked, alone = " ".join(summary.split()).split("not permuted: ")[1].split(" mask ")
    assert masked == (
        "w0[-1], w1[-1], w2[-1], w3[-1], w4[-1], w5[-1] and 2 more are fixed: tied to dim 1 of "
        "the random"
    )
    assert alone == "b[-1] is fixed: of its own"


def test_summary_wraps_long_lines() -> None:
    names = [f"layer{i}.weight" for i in range(12)]
    symmetry = PermutationSymmetry(
        {"hidden": {name: Axis(-1, outer=2) for name in names}},
        shapes={name: [6] for name in names},
        reasons={"bias[0]": "tied to " + ", ".join(names), "x" * 120: "of its name"},
    )
    lines = symmetry.summary().splitlines()
    assert [line for line in lines if len(line) > 100] == [f"  {'x' * 120}"]
    table, reasons = lines[1:7], lines[10:]
    assert table[0] == (
        "hidden     3     1.8  layer0.weight[Axis(-1, outer=2)], layer1.weight[Axis(-1, outer=2)],"
    )
    assert all(line.startswith(22 * " " + "layer") for line in table[1:])
    joined = ", ".join(f"{name}[Axis(-1, outer=2)]" for name in names)
    assert " ".join(line[22:] for line in table) == joined
    assert reasons[1].startswith("    layer")
    assert "bias[0] is fixed: tied to " + ", ".join(names) in " ".join(" ".join(reasons).split())


def test_an_empty_symmetry_is_falsy() -> None:
    assert not PermutationSymmetry({})
    assert PermutationSymmetry({"g": {"w": 0}})


@pytest.mark.parametrize(
    ("spec", "found"),
    [({"w1": 0}, "group 'w1' is given 0"), ({"g": ["w1"]}, "group 'g' is given"), (["w1"], "list")],
)
def test_what_is_no_spec_is_refused_with_its_form(spec: Any, found: str) -> None:
    with pytest.raises(TypeError, match=rf"a spec is {{group: {{site: axis}}}}.*{found}"):
        PermutationSymmetry(spec)


@pytest.mark.parametrize("groups", ["P0", 0, None, ("P0", 1)])
def test_what_is_no_tuple_of_groups_is_refused(groups: Any) -> None:
    with pytest.raises(TypeError, match=r"site 'w': give a tuple .* such as \('P0', None\)"):
        PermutationSymmetry.from_axes_to_perm({"w": groups})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_shape": 5}, r"such as \(5,\) for five of them"),
        ({"sample_shape": "ab"}, r"such as \(5,\) for five of them"),
        ({"sample_shape": (2.0,)}, r"such as \(5,\) for five of them"),
        ({"generator": 0}, r"torch.Generator\(\).manual_seed\(0\)"),
    ],
)
def test_options_of_draws_are_explained(
    symmetry: PermutationSymmetry, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        symmetry.sample(**options)


@pytest.mark.parametrize("axis", ["0", 1.0, None, (0, "1")])
def test_what_is_no_axis_is_refused_with_its_place(axis: Any) -> None:
    with pytest.raises(TypeError, match="group 'hidden', site 'w1': an axis is an int or an Axis"):
        PermutationSymmetry({"hidden": {"w1": axis}})


def test_coordinates_of_a_long_index_are_quick_and_right_under_a_compiler() -> None:
    axis = Axis(0, index=tuple(torch.randperm(20_000)[:8_000].tolist()))
    assert axis.coordinates(20_000, torch.device("cpu")).tolist() == list(axis.index or ())

    def seconds(make: Callable[[], Tensor]) -> float:
        return min(timeit.repeat(make, number=1, repeat=10))

    quick = seconds(lambda: axis.coordinates(20_000, torch.device("cpu")))
    assert 5 * quick < seconds(lambda: torch.tensor(axis.index))
    with FakeTensorMode():
        assert isinstance(axis.coordinates(20_000, torch.device("cpu")), FakeTensor)
    assert not isinstance(axis.coordinates(20_000, torch.device("cpu")), FakeTensor)
