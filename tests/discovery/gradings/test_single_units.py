"""Layers of a single unit: nothing permutes them, but they are rescaled, or flip their sign."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from examples.bayesian import normal, observe, scales_of, written
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.discovery import find_symmetry
from pyro_perm.verification import check_groups

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
Y = torch.linspace(0, 1, 8, dtype=torch.float64).view(4, 2)


def chain(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], None]:
    """Layers of one, one and three units."""

    def model(x: Tensor, y: Tensor) -> None:
        h = activation(x @ normal("w1", 3, 1) + normal("b1", 1))
        h = activation(h @ normal("w2", 1, 1) + normal("b2", 1))
        h = activation(h @ normal("w3", 1, 3) + normal("b3", 3))
        observe(h @ normal("w4", 3, 2), y)

    return model


def test_units_of_rectifiers_are_rescaled() -> None:
    symmetry = find_symmetry(chain(torch.relu), X, Y, scales=True)
    assert scales_of(symmetry) == written(
        [
            "w1[-1]^1 b1[-1]^1 w2[-2]^-1 unpermuted",
            "w2[-1]^1 b2[-1]^1 w3[-2]^-1 unpermuted",
            "w3[-1]^1 b3[-1]^1 w4[-2]^-1",
        ]
    )
    checks = check_groups(symmetry, chain(torch.relu), X, Y)
    assert all(check.passed and (check.is_effective or check.control is None) for check in checks)


def test_odd_units_flip_their_signs() -> None:
    symmetry = find_symmetry(chain(torch.tanh), X, Y, signs=True)
    flips = {frozenset(sites) for sites in symmetry.spec.values()}
    assert flips == written(["w1 b1 w2", "w2 b2 w3", "w3 b3 w4"])
    assert symmetry.log_order == pytest.approx(math.log(6) + 5 * math.log(2))


def test_a_linear_unit_does_both_as_one_group() -> None:
    symmetry = find_symmetry(chain(lambda h: h), X, Y, signs=True, scales=True)
    assert [axis for axes in symmetry.spec["P1"].values() for axis in axes] == [
        pp.Axis(-1, sign=True, scale=1, permute=False),
        pp.Axis(-1, sign=True, scale=1, permute=False),
        pp.Axis(-2, sign=True, scale=-1, permute=False),
    ]
    assert len(symmetry.spec) == 3


@pytest.mark.parametrize(
    ("activation", "options"),
    [(torch.relu, {"signs": True}), (torch.tanh, {"scales": True}), (torch.relu, {})],
)
def test_units_on_which_nothing_acts_are_no_group(activation, options) -> None:
    symmetry = find_symmetry(chain(activation), X, Y, **options)
    assert symmetry.groups == {"P0": 3}


@pytest.mark.parametrize("options", [{"signs": True}, {"scales": True}])
def test_a_single_input_is_no_unit_of_its_own(options) -> None:
    """Acting on all of its weights is acting on all units of the layer alike."""
    net = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 1, bias=False))
    symmetry = find_symmetry(net, torch.randn(5, 1), **options)
    assert symmetry.groups == {"P0": 4}
    assert symmetry.signed_groups or scales_of(symmetry)


def test_an_unequal_prior_keeps_the_sign() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        observe(torch.tanh(x @ normal("w1", 3, 1)) @ normal("w2", 1, 2).exp(), y)

    assert not find_symmetry(model, X, Y, signs=True).spec


def guide_of(activation, **options):
    def model(x: Tensor, y: Tensor) -> None:
        observe(activation(x @ normal("w1", 3, 1)) @ normal("w2", 1, 2), y)

    symmetry = find_symmetry(model, X, Y, **options)
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.3)
    guide = pp.AutoSymmetrized(base, symmetry)
    guide(X, Y)
    return guide


def log_q(guide, values: dict[str, Tensor]) -> Tensor:
    factors = [
        dist.Normal(getattr(guide.base.locs, site), getattr(guide.base.scales, site))
        for site in values
    ]
    return sum(q.log_prob(x).sum() for q, x in zip(factors, values.values(), strict=True))


def test_the_density_is_the_mean_over_both_signs() -> None:
    guide = guide_of(torch.tanh, signs=True)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(guide).get_trace(X, Y)
        values = {site: trace.nodes[site]["value"] for site in ("w1", "w2")}
        flipped = {site: -value for site, value in values.items()}
        both = torch.stack([log_q(guide, values), log_q(guide, flipped)])
        expected = both.logsumexp(0) - math.log(2)
        torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=0, atol=1e-10)


def test_a_guide_of_scales_gains_and_has_nothing_to_permute() -> None:
    guide = guide_of(torch.relu, scales=True)
    bounds = pp.mutual_information(guide, X, Y, num_samples=50, progress=False)
    assert bounds.scales > 0
    assert bounds.lower == bounds.upper == 0.0
