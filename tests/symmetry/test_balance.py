"""Balanced representatives: the shortest weights of each orbit, wherever on it one starts."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples
from problems import RESCALED_PROBLEMS, Problem
from pyro import poutine
from torch import Tensor

import pyro_perm as pp
from pyro_perm import Axis
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.actions.scale import Scale
from pyro_perm.symmetry.balance import balance
from pyro_perm.symmetry.elements import as_element

properties = settings(max_examples=examples(30))


def group_of(problem: Problem) -> SymmetryGroup:
    return problem.symmetry().bind(poutine.trace(problem.model).get_trace(*problem.args))


def perceptron(*sizes: int) -> SymmetryGroup:
    """Layers of rectifiers, each with a bias."""
    shapes, spec = {}, {}
    for layer in range(1, len(sizes)):
        shapes[f"w{layer}"] = (sizes[layer], sizes[layer - 1])
        shapes[f"b{layer}"] = (sizes[layer],)
    for layer in range(1, len(sizes) - 1):
        incoming, outgoing = Axis(0, scale=1), Axis(1, scale=-1)
        sites = {f"w{layer}": incoming, f"b{layer}": incoming, f"w{layer + 1}": outgoing}
        spec[f"layer{layer}"] = sites
    return pp.PermutationSymmetry(spec, shapes=shapes).group


def feedback(units: int) -> SymmetryGroup:
    """Units that scale each other."""
    both = (Axis(0, scale=1), Axis(1, scale=-1))
    spec = {"in": Axis(0, scale=1), "recurrent": both, "out": Axis(1, scale=-1)}
    shapes = {"in": (units, 1), "recurrent": (units, units), "out": (1, units)}
    return pp.PermutationSymmetry({"units": spec}, shapes=shapes).group


GROUPS = {
    **{str(problem): cache(partial(group_of, problem)) for problem in RESCALED_PROBLEMS},
    "three hidden layers": cache(partial(perceptron, 2, 5, 4, 3, 1)),
    "nine hidden layers": cache(partial(perceptron, *[3] * 11)),
}


@pytest.fixture(params=GROUPS.values(), ids=GROUPS.keys())
def group(request):
    return request.param()


def draw(group: SymmetryGroup, *draws: int) -> dict[str, Tensor]:
    return {site: torch.randn(*draws, *group.site_shape(site)) for site in group.sites}


def rescaling(group: SymmetryGroup, num: int, largest: float = 3.0):
    """Random scales, everything else being in place."""
    return {
        name: Scale().with_part(
            as_element(group.factor(name).identity().expand(num, -1)),
            largest * (2 * torch.rand(num, group.groups[name]) - 1),
        )
        for name in group.open_groups
    }


def square(values: dict[str, Tensor]) -> Tensor:
    return sum(value.square().flatten(1).sum(-1) for value in values.values())


def ends(group: SymmetryGroup, name: str, values: dict[str, Tensor]) -> list[Tensor]:
    """Squared norms of what is multiplied by each unit's scale and of what is divided by it."""
    sums = [torch.zeros(()), torch.zeros(())]
    for site, axis in group.factor(name).axes:
        if axis.scale:
            entries = axis.units(values[site].square(), group.site_rank(site))
            sums[axis.scale < 0] = sums[axis.scale < 0] + entries.sum(-1)
    return sums


def test_both_ends_of_every_unit_have_the_same_norm(group):
    values = draw(group, 6)
    balanced = group.apply(balance(group, values), values)
    for name in group.open_groups:
        incoming, outgoing = ends(group, name, balanced)
        torch.testing.assert_close(incoming, outgoing, rtol=1e-13, atol=0)


def test_no_equivalent_weights_are_shorter(group):
    values = draw(group, 6)
    balanced = group.apply(balance(group, values), values)
    for largest in (1e-3, 0.1, 1.0):
        others = group.apply(rescaling(group, 6, largest), balanced)
        assert (square(others) > square(balanced)).all()


@properties
@given(st.sampled_from([*GROUPS]), st.integers(0, 10**6))
def test_the_representative_does_not_depend_on_the_place_on_the_orbit(name, seed):
    torch.manual_seed(seed)
    group = GROUPS[name]()
    values = draw(group, 3)
    moved = group.apply(rescaling(group, 3), values)
    one, other = (group.apply(balance(group, each), each) for each in (values, moved))
    for site in group.sites:
        torch.testing.assert_close(one[site], other[site], rtol=1e-11, atol=0)


def test_degrees_weigh_the_norms():
    """Where ``c`` multiplies two entries and ``c^2`` divides one, this one counts twice."""
    spec = {"units": {"u": Axis(0, scale=1), "v": Axis(0, scale=-2)}}
    group = pp.PermutationSymmetry(spec, shapes={"u": (3, 2), "v": (3,)}).group
    values = draw(group, 4)
    moved = group.apply(rescaling(group, 4), values)
    for each in (values, moved):
        balanced = group.apply(balance(group, each), each)
        incoming = balanced["u"].square().sum(-1)
        torch.testing.assert_close(incoming, 2 * balanced["v"].square(), rtol=1e-12, atol=0)
        # The invariant of the orbit tells the rest.
        invariant = incoming * balanced["v"].abs()
        expected = values["u"].square().sum(-1) * values["v"].abs()
        torch.testing.assert_close(invariant, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("weak", "tolerance"), [(1.0, 1e-12), (1e-4, 1e-7), (1e-6, 1e-2)])
def test_units_that_mostly_scale_each_other(weak, tolerance):
    """The weaker the ends are, the slower are sweeps alone, and the more rounding counts."""
    group = feedback(20)
    values = draw(group, 2)
    values |= {site: weak * values[site] for site in ("in", "out")}
    moved = group.apply(rescaling(group, 2), values)
    one, other = (group.apply(balance(group, each), each) for each in (values, moved))
    for site in group.sites:
        torch.testing.assert_close(one[site], other[site], rtol=tolerance, atol=0)


def test_a_diagonal_that_is_not_rescaled_does_not_count():
    group = feedback(3)
    values = draw(group, 2)
    other = values | {"recurrent": values["recurrent"] + 100 * torch.eye(3)}
    first, second = (balance(group, each)["units"].parts[Scale()] for each in (values, other))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_dead_units_keep_their_scale_and_do_not_count():
    group = perceptron(2, 4, 3, 1)
    values = draw(group, 3)
    values["w1"][0, 1], values["b1"][0, 1] = 0.0, 0.0  # Nothing enters a unit, in one draw only.
    values["w3"][1, :, 2] = 0.0  # Nothing leaves one.
    elements = balance(group, values)
    log_scales = {name: element.parts[Scale()] for name, element in elements.items()}
    assert {n: (t == 0).nonzero().tolist() for n, t in log_scales.items()} == {
        "layer1": [[0, 1]],
        "layer2": [[1, 2]],
    }
    without = dict(values)
    without["w2"] = values["w2"].clone()
    without["w2"][0, :, 1] = without["w2"][1, 2] = 0.0
    without["b2"] = values["b2"].clone()
    without["b2"][1, 2] = 0.0
    for name, element in balance(group, without).items():
        torch.testing.assert_close(element.parts[Scale()], log_scales[name])


def test_units_that_are_dead_because_others_are():
    group = perceptron(2, 1, 2, 1)
    values = draw(group, 1)
    values["w1"][:], values["b1"][:], values["b2"][0, 0] = 0.0, 0.0, 0.0
    log_scales = {n: e.parts[Scale()][0].tolist() for n, e in balance(group, values).items()}
    assert log_scales["layer1"] == [0.0]
    assert log_scales["layer2"][0] == 0.0
    assert log_scales["layer2"][1] != 0.0


def test_zeros_are_balanced():
    group = perceptron(2, 3, 3, 1)
    values = {site: torch.zeros(2, *group.site_shape(site)) for site in group.sites}
    assert all((element.parts[Scale()] == 0).all() for element in balance(group, values).values())


@pytest.mark.parametrize("missing", ["in", "out"])
def test_circles_that_nothing_enters_or_leaves_are_dead(missing):
    group = feedback(3)
    values = draw(group, 2)
    values[missing][0] = 0.0
    log_scales = balance(group, values)["units"].parts[Scale()]
    assert (log_scales[0] == 0).all() and (log_scales[1] != 0).all()


def test_squares_out_of_range_are_refused():
    group = perceptron(2, 3, 1)
    with pytest.raises(ValueError, match="cannot be balanced in double precision"):
        balance(group, {site: 1e200 * value for site, value in draw(group, 2).items()})


def test_single_precision_is_balanced_in_double():
    group = perceptron(3, 5, 4, 1)
    values = {site: value.float() for site, value in draw(group, 4).items()}
    found = balance(group, values)
    expected = balance(group, {site: value.double() for site, value in values.items()})
    for name, element in found.items():
        assert torch.equal(element.parts[Scale()], expected[name].parts[Scale()])
    assert group.apply(found, values)["w1"].dtype == torch.float32


def test_groups_without_scales_have_nothing_to_balance():
    symmetry = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (3,)})
    assert balance(symmetry.group, {"w": torch.ones(1, 3)}) == {}
