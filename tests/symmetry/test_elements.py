"""Groups that flip the signs of their units: laws, action, generators, formats, verification."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples
from torch import Tensor

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.symmetry import Axis
from pyro_perm.uniform_permutation import UniformPermutation
from pyro_perm.verification import SymmetryVerificationError, check_groups

laws = settings(max_examples=examples(40))
SEEDS = st.integers(0, 2**32 - 1)

# Three units that flip along a plain axis, gates, both axes of a recurrent weight and a segment,
# and keep the sign of their scales; a group without signs shares a site.
SPEC = {
    "units": {
        "bias": Axis(0, sign=True),
        "gates": (Axis(0, outer=2, sign=True), Axis(1, sign=True)),
        "square": (Axis(-2, sign=True), Axis(-1, sign=True)),
        "segment": Axis(0, inner=2, index=range(1, 7), sign=True),
        "tau": 0,
    },
    "plain": {"segment": 1},
}
SHAPES = {"bias": [3], "gates": [6, 3], "square": [3, 3], "segment": [8, 2], "tau": [3]}


def bound() -> PermutationSymmetry:
    return PermutationSymmetry(SPEC, shapes=SHAPES)


def random_values(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {site: torch.randn(shape) for site, shape in SHAPES.items()}


def matrix(element: Tensor) -> Tensor:
    """A signed permutation as a matrix: row ``i`` takes unit ``g[i]``, or minus it."""
    rows = []
    for j in element.tolist():
        row = torch.zeros(len(element))
        row[j if j >= 0 else -1 - j] = 1.0 if j >= 0 else -1.0
        rows.append(row)
    return torch.stack(rows)


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@laws
@given(SEEDS)
def test_elements_multiply_like_signed_permutation_matrices(seed: int) -> None:
    symmetry = bound()
    torch.manual_seed(seed)
    g, h = symmetry.sample(), symmetry.sample()
    product, inverse = symmetry.compose(g, h), symmetry.inverse(g)
    for group in symmetry.groups:
        assert torch.equal(matrix(product[group]), matrix(g[group]) @ matrix(h[group]))
        assert torch.equal(matrix(inverse[group]), matrix(g[group]).T)


@laws
@given(SEEDS)
def test_the_action_is_that_of_the_matrices(seed: int) -> None:
    w = random_values(seed)
    g = bound().sample()
    units, plain = matrix(g["units"]), matrix(g["plain"])
    segment = w["segment"].clone()
    segment[1:7] = torch.kron(units, torch.eye(2)) @ segment[1:7]
    expected = {
        "bias": units @ w["bias"],
        "gates": torch.kron(torch.eye(2), units) @ w["gates"] @ units.T,
        "square": units @ w["square"] @ units.T,
        "segment": segment @ plain.T,
        "tau": units.abs() @ w["tau"],
    }
    torch.testing.assert_close(bound().apply(g, w), expected)


@laws
@given(SEEDS)
def test_group_laws(seed: int) -> None:
    symmetry, w = bound(), random_values(seed)
    f, g, h = (symmetry.sample() for _ in range(3))
    compose, inverse, apply = symmetry.compose, symmetry.inverse, symmetry.apply
    assert_equal(compose(compose(f, g), h), compose(f, compose(g, h)))
    assert_equal(compose(g, inverse(g)), compose(inverse(g), g))
    assert_equal(apply(compose(f, g), w), apply(f, apply(g, w)))
    assert_equal(apply(inverse(g), apply(g, w)), w)


@laws
@given(SEEDS)
def test_batches_broadcast(seed: int) -> None:
    symmetry, w = bound(), random_values(seed)
    g = symmetry.sample((4, 2))
    moved = symmetry.apply(g, w)
    for i in range(4):
        one = {group: p[i, 1] for group, p in g.items()}
        assert_equal(symmetry.apply(one, w), {site: value[i, 1] for site, value in moved.items()})
    several = {site: value.expand(2, *value.shape) for site, value in w.items()}
    assert_equal(symmetry.apply(g, several), moved)


def test_generators_generate_the_whole_group() -> None:
    for size in (1, 2, 3):
        symmetry = PermutationSymmetry({"g": {"w": Axis(0, sign=True)}}, shapes={"w": [size]})
        found = {tuple(range(size))}
        while True:
            products = (
                symmetry.compose({"g": torch.tensor(p)}, {"g": g})["g"]
                for p in found
                for _, g in symmetry.generators()
            )
            larger = found | {tuple(p.tolist()) for p in products}
            if larger == found:
                break
            found = larger
        assert len(found) == math.factorial(size) * 2**size
        assert symmetry.log_order == pytest.approx(math.log(len(found)))


def test_sampling_is_uniform_over_the_group() -> None:
    symmetry = PermutationSymmetry({"g": {"w": Axis(0, sign=True)}}, shapes={"w": [2]})
    site = UniformPermutation(2, (4000,), signed=True)
    for drawn in (symmetry.sample((4000,))["g"], site.sample()):
        elements, counts = torch.unique(drawn, dim=0, return_counts=True)
        assert len(elements) == 8
        assert (counts.double() / 4000 - 1 / 8).abs().max() < 0.03
        assert site.support.check(drawn).all()
    assert site.expand((5,)).sample().min() < 0
    assert (UniformPermutation(9, (50,)).sample() >= 0).all()


def test_groups_on_one_axis_must_commute_with_the_flips_too() -> None:
    twice = {"g": {"w": Axis(0)}, "h": {"w": Axis(0)}}
    PermutationSymmetry(twice, shapes={"w": [2]})
    signed = {"g": {"w": Axis(0, sign=True)}, "h": {"w": Axis(0)}}
    with pytest.raises(ValueError, match="do not commute"):
        PermutationSymmetry(signed, shapes={"w": [2]})
    factors = {"g": {"w": Axis(0, outer=2, sign=True)}, "h": {"w": Axis(0, inner=3, sign=True)}}
    assert PermutationSymmetry(factors, shapes={"w": [6]}).groups == {"g": 3, "h": 2}


def test_json_and_summary_tell_the_signs() -> None:
    symmetry = bound()
    copy = PermutationSymmetry.from_json(symmetry.to_json())
    assert copy.spec == symmetry.spec and copy.signed_groups == ("units",)
    assert symmetry.subset(include=["plain"]).signed_groups == ()
    small = PermutationSymmetry(
        {"hidden": {"w1": Axis(-2, sign=True), "tau": -1}}, shapes={"w1": [4, 2], "tau": [4]}
    )
    assert small.summary().splitlines() == [
        "group   size  log order  axes (± flips sign)",
        "hidden     4        6.0  ±w1[-2], tau[-1]",
        "log |G| = 6.0 nats",
    ]
    with pytest.raises(ValueError, match=r"axis Axis\(-2, sign=True\) is structured, signed"):
        _ = small.axes_to_perm


SIGNED = {"hidden": {"tau": 0, "w1": Axis(0, sign=True), "w2": Axis(0, sign=True)}}


def network(activation: Any = torch.tanh, loc: float = 0.0) -> None:
    tau = pyro.sample("tau", dist.HalfNormal(torch.ones(4)).to_event(1))
    w1 = pyro.sample("w1", dist.Normal(loc * torch.ones(4, 3), tau.unsqueeze(-1)).to_event(2))
    f = normal("w2", 4) @ activation(w1 @ torch.arange(3.0))
    pyro.sample("y", dist.Normal(f, 1.0), obs=torch.tensor(0.3))


def test_right_signs_pass_with_an_effective_control() -> None:
    checks = check_groups(PermutationSymmetry(SIGNED), network)
    assert [check.action for check in checks] == ["permute", "flip"]
    assert all(check.passed and check.is_effective for check in checks)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (SIGNED, (torch.relu,), "flipping a unit of group 'hidden' .* an activation is not odd"),
        (SIGNED, (torch.tanh, 1.0), "prior of site 'w1' is not symmetric about zero"),
        (
            {"hidden": {"tau": 0, "w1": Axis(0, sign=True), "w2": 0}},
            (),
            "flipping a unit of group 'hidden' changes",
        ),
        (
            {"hidden": {**SIGNED["hidden"], "tau": Axis(0, sign=True)}},
            (),
            "flipping a unit of group 'hidden' changes the log joint by (inf|nan)",
        ),
    ],
)
def test_wrong_signs_are_refused(spec: Any, arguments: Any, message: str) -> None:
    with pytest.raises(SymmetryVerificationError, match=message):
        PermutationSymmetry(spec).verify(network, *arguments)
