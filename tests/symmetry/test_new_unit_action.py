"""A unit action of one's own is one file, this one: cyclic shifts of the entries of a unit.

A unit whose weights lie on a ring, say, may start anywhere on it. Against sums over all elements.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples, slow
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.symmetry import Axis, Element, actions
from pyro_perm.symmetry.actions.finite import FiniteAction
from pyro_perm.symmetry.actions.sign import Sign
from pyro_perm.verification import SymmetryVerificationError, check_groups

laws = settings(derandomize=True, deadline=None, max_examples=examples(25))
SEEDS = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class RingAxis(Axis):
    """An axis whose entries of one unit lie on a ring, and shift along it."""

    shift: bool = True


@dataclass(frozen=True)
class CyclicShift(FiniteAction):
    """Shifts the entries of a unit along a ring of so many."""

    length: int

    name = "shift"
    verb = "shift"
    deed = "shifts the entries of"
    legend = "o shifts"

    @classmethod
    def of(cls, axes):
        lengths = {axis.inner for axis in axes if isinstance(axis, RingAxis)}
        return cls(*lengths) if lengths else None

    def degree(self, axis):
        return int(isinstance(axis, RingAxis))

    def mark(self, axis):
        return "o" if self.degree(axis) else ""

    def elements(self):
        return torch.arange(self.length)

    def generators(self):
        return torch.tensor([1])

    def compose(self, first, second):
        return (first + second) % self.length

    def inverse(self, element):
        return -element % self.length

    def act(self, value, element, axis, rank):
        if not self.degree(axis):
            return value
        batch = torch.broadcast_shapes(value.shape[:-rank], element.shape[:-1])
        value = value.expand(*batch, *value.shape[value.dim() - rank :])
        rings = value.movedim(axis.dim, -1).unflatten(-1, (axis.outer, -1, self.length))
        start = element.reshape(*element.shape[:-1], *(1,) * rank, -1, 1)
        places = (torch.arange(self.length) + start) % self.length
        return rings.gather(-1, places.expand(rings.shape)).flatten(-3).movedim(-1, axis.dim)


@pytest.fixture(autouse=True, scope="module")
def _known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions, "KINDS", (Sign, CyclicShift))
        yield


# Three units with two rings of three entries each, two other entries, and one that may flip.
RINGS, SIGNED_RINGS = (
    {
        "units": {
            "ring": RingAxis(0, inner=3, sign=sign),
            "far": RingAxis(1, inner=3),
            "out": 1,
            "odd": Axis(0, sign=sign),
        }
    }
    for sign in (False, True)
)
SHAPES = {"ring": (9, 2), "far": (1, 9), "out": (2, 3), "odd": (3,)}
SPECS = pytest.mark.parametrize(
    "spec", [RINGS, *slow(SIGNED_RINGS)], ids=["shifts", "signs and shifts"]
)


def by_hand(values, permutation, shifts, signs):
    """What one element does, unit by unit and entry by entry."""
    moved = {site: value.clone() for site, value in values.items()}
    for i, (j, shift, sign) in enumerate(zip(permutation, shifts, signs, strict=True)):
        for k in range(3):
            start = (k + shift) % 3
            moved["ring"][3 * i + k] = sign * values["ring"][3 * j + start]
            moved["far"][:, 3 * i + k] = values["far"][:, 3 * j + start]
        moved["out"][:, i] = values["out"][:, j]
        moved["odd"][i] = sign * values["odd"][j]
    return moved


def whole_group(spec):
    """Permutation, shifts and signs of every element."""
    signs = (1, -1) if spec is SIGNED_RINGS else (1,)
    return itertools.product(
        itertools.permutations(range(3)),
        itertools.product(range(3), repeat=3),
        itertools.product(signs, repeat=3),
    )


def rings(spec, spread=0.4, seed=0, num=()):
    generator = torch.Generator().manual_seed(seed)
    group = pp.PermutationSymmetry(spec, shapes=SHAPES).group
    kinds = {}, {}, {}
    for site, shape in SHAPES.items():
        loc = spread * torch.randn(shape, generator=generator)
        scale = 0.5 + torch.rand(shape, generator=generator)
        value = loc + scale * torch.randn(*num, *shape, generator=generator)
        for kind, tensor in zip(kinds, (value, loc, scale), strict=True):
            kind[site] = tensor.requires_grad_()
    return FactorizedDensity(group, *kinds, torch.Size(num))


@cache
def entries_by_hand(signed):
    """What every element puts into each place: entries counted from one, less than zero if flipped.

    :returns: site -> shape ``(elements, *site shape)``.
    """
    numbered = {s: 1 + torch.arange(math.prod(shape)).view(shape) for s, shape in SHAPES.items()}
    spec = SIGNED_RINGS if signed else RINGS
    moved = [by_hand(numbered, *element) for element in whole_group(spec)]
    return {site: torch.stack([each[site] for each in moved]) for site in SHAPES}


def log_ratio_by_hand(density, spec):
    def log_q(values):
        return sum(
            dist.Normal(density.locs[site], density.scales[site])
            .to_event(len(shape))
            .log_prob(values[site])
            for site, shape in SHAPES.items()
        )

    entries = entries_by_hand(spec is SIGNED_RINGS)
    moved = {
        site: each.sign() * density.values[site].flatten()[each.abs() - 1]
        for site, each in entries.items()
    }
    terms = log_q(moved)
    return terms.logsumexp(0) - math.log(len(terms)) - log_q(density.values)


def gradients(log_ratio, density):
    leaves = [
        kind[site] for kind in (density.values, density.locs, density.scales) for site in kind
    ]
    return torch.autograd.grad(log_ratio, leaves)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for site, value in first.items():
        torch.testing.assert_close(value, second[site], rtol=0, atol=0)


@SPECS
def test_the_group_has_the_order_that_it_says(spec):
    symmetry = pp.PermutationSymmetry(spec, shapes=SHAPES)
    elements = symmetry.group.factor("units").elements()
    assert elements.shape == (len(list(whole_group(spec))), 3)
    assert symmetry.log_order == pytest.approx(math.log(len(list(whole_group(spec)))))
    assert "o±ring[Axis(0, inner=3)]" in symmetry.summary() or spec is RINGS


@SPECS
@given(seed=SEEDS)
@laws
def test_elements_act_as_by_hand(spec, seed):
    torch.manual_seed(seed)
    symmetry = pp.PermutationSymmetry(spec, shapes=SHAPES)
    values = {site: torch.randn(shape) for site, shape in SHAPES.items()}
    element = symmetry.sample()["units"]
    signs = [-1 if unit < 0 else 1 for unit in element.permutation.tolist()]
    permutation = [~unit if unit < 0 else unit for unit in element.permutation.tolist()]
    shifts = element.parts[CyclicShift(3)].tolist()
    moved = symmetry.apply({"units": element}, values)
    assert_same(moved, by_hand(values, permutation, shifts, signs))


@SPECS
@given(seed=SEEDS)
@laws
def test_group_laws(spec, seed):
    torch.manual_seed(seed)
    symmetry = pp.PermutationSymmetry(spec, shapes=SHAPES)
    w = {site: torch.randn(4, *shape) for site, shape in SHAPES.items()}
    f, g = symmetry.sample((4,)), symmetry.sample()
    compose, inverse, apply = symmetry.compose, symmetry.inverse, symmetry.apply
    assert_same(apply(compose(f, g), w), apply(f, apply(g, w)))
    assert_same(apply(compose(g, f), w), apply(g, apply(f, w)))
    assert_same(apply(inverse(f), apply(f, w)), w)
    bare = {"units": torch.tensor([2, 0, 1])}
    assert_same(apply(compose(f, bare), w), apply(f, apply(bare, w)))
    for draw in range(4):
        one = {
            "units": replace(
                f["units"],
                permutation=f["units"].permutation[draw],
                parts={action: part[draw] for action, part in f["units"].parts.items()},
            )
        }
        alone = apply(one, {site: value[draw] for site, value in w.items()})
        assert_same(alone, {site: value[draw] for site, value in apply(f, w).items()})


@SPECS
@pytest.mark.parametrize("spread", [0.4, *slow(0.0, 2.0)])
def test_estimators_meet_the_sum_over_the_group(spec, spread):
    density = rings(spec, spread)
    expected = log_ratio_by_hand(density, spec)
    by_hand_gradients = gradients(expected, density)
    for estimator in (pp.Exact(), pp.Bethe()):
        found = estimator.log_ratio(density)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
        for one, other in zip(gradients(found, density), by_hand_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@SPECS
def test_bounds_are_on_their_sides(spec):
    density = rings(spec, num=(200,))
    exact = -pp.Exact().log_ratio(density)
    chain_rule = pp.SampledChainRule(8).bounds(density)
    below = [-pp.InfoNCE(8).log_ratio(density), chain_rule.lower]
    above = [-pp.LeaveOneOut(8).log_ratio(density), chain_rule.upper]
    for gap in [exact - bound for bound in below] + [bound - exact for bound in above]:
        assert gap.mean().item() >= -4 * gap.std().item() / 200**0.5 - 1e-9
    many = -pp.InfoNCE(20_000).log_ratio(rings(spec)) + pp.Exact().log_ratio(rings(spec))
    assert abs(many.item()) < 0.05


@SPECS
def test_screening_sees_units_that_overlap_after_a_shift(spec, monkeypatch):
    density = rings(spec, 40.0)
    with torch.no_grad():
        for kind in (density.values, density.locs, density.scales):
            for site, axis in (("ring", 0), ("far", 1)):
                rows = kind[site].movedim(axis, 0)
                rows[3:6] = rows[0:3].roll(1, 0)
            kind["out"][:, 1] = kind["out"][:, 0]
            kind["odd"][1] = kind["odd"][0]
    whole = pp.Bethe().log_ratio(density)
    monkeypatch.setattr("pyro_perm.estimators._screening._WORTHWHILE", 0)
    screened = pp.Bethe()
    found = screened.log_ratio(density)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
    # Two units that are the same: all is told but their order.
    order = density.symmetry.log_order
    assert -found.item() == pytest.approx(order - math.log(2), abs=1e-6)
    (screen,) = screened._screens.values()
    assert [clusters.tolist() for clusters in screen._clusters] == [[[0, 1]]]
    for one, other in zip(
        gradients(found, density), gradients(pp.Bethe().log_ratio(density), density), strict=True
    ):
        torch.testing.assert_close(one, other)


def network(position=False):
    """Units that sum a nonlinear function of their weights over a ring."""
    ring = pyro.sample("ring", dist.Normal(torch.zeros(12), 1.0).to_event(1))
    out = pyro.sample("out", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    weights = torch.arange(1.0, 4.0) if position else torch.ones(3)
    x = torch.linspace(-1.0, 1.0, 5).unsqueeze(-1)
    hidden = (torch.relu(x * ring + 0.3).unflatten(-1, (4, 3)) * weights).sum(-1)
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(hidden @ out, 0.5), obs=x.squeeze(-1).sin())


RING_NETWORK = {"hidden": {"ring": RingAxis(0, inner=3), "out": 0}}


def test_verification_notices_shifts_that_change_the_model():
    symmetry = pp.PermutationSymmetry(RING_NETWORK)
    checks = check_groups(symmetry, network)
    assert [check.action for check in checks] == ["permute", "shift"]
    assert all(check.passed for check in checks) and checks[0].is_effective
    with pytest.raises(SymmetryVerificationError, match="to shift a unit of group 'hidden'"):
        symmetry.verify(network, position=True)


def test_files_refuse_what_they_do_not_know(tmp_path):
    symmetry = pp.PermutationSymmetry(RING_NETWORK)
    with pytest.raises(ValueError, match=r"group 'hidden', site 'ring': .* is a RingAxis"):
        symmetry.to_json()
    guide = pp.AutoSymmetrized(AutoNormal(network, init_loc_fn=pp.init_to_fan_in), symmetry)
    guide()
    with pytest.raises(ValueError, match=r"group 'hidden', site 'ring': .* is a RingAxis"):
        pp.save(guide, tmp_path / "guide.safetensors")
    assert not any(tmp_path.iterdir())


def test_an_axis_says_what_it_is():
    axis = RingAxis(0, inner=3)
    assert str(axis) == "RingAxis(0, inner=3)"
    assert axis.plain == pp.Axis(0, inner=3)


def test_a_guide_draws_and_trains():
    base = AutoNormal(network, init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(base, pp.PermutationSymmetry(RING_NETWORK))
    for loss in (Trace_ELBO(), pp.TraceSymmetrized_ELBO()):
        svi = SVI(network, guide, Adam({"lr": 0.02}), loss)
        assert all(math.isfinite(svi.step()) for _ in range(3))
    trace = poutine.trace(guide).get_trace()
    shifts = trace.nodes["hidden_shift.ring"]["value"]
    assert shifts.shape == (4,) and ((shifts >= 0) & (shifts < 3)).all()
    assert trace.nodes["hidden_permutation.ring"]["value"].sort().values.tolist() == [0, 1, 2, 3]
    trace.compute_log_prob()
    drawn = {site: trace.nodes[site]["value"] for site in ("ring", "out")}
    unmoved = {"ring": trace.nodes["ring_unconstrained"]["value"]}
    element = {
        "hidden": Element(trace.nodes["hidden_permutation.ring"]["value"], {CyclicShift(3): shifts})
    }
    assert_same(guide.symmetry.apply(element, unmoved), {"ring": drawn["ring"]})


def test_draws_are_aligned_modulo_shifts():
    symmetry = pp.PermutationSymmetry(RING_NETWORK, shapes={"ring": (12,), "out": (4,)})
    reference = {"ring": torch.randn(12), "out": torch.randn(4)}
    moved = symmetry.apply(symmetry.sample((20,)), reference)
    for target in (reference, None):
        aligned = pp.align(moved, symmetry, target)
        for site, value in aligned.samples.items():
            expected = value[:1] if target is None else target[site]
            torch.testing.assert_close(value, expected.expand_as(value))
        assert_same(symmetry.apply(aligned.permutations, moved), aligned.samples)
