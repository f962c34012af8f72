"""Units overlap where their orbits do, wherever on these their factors are."""

from __future__ import annotations

import itertools

import pyro
import torch
from marks import on_each
from problems import (
    Problem,
    flattened_channels,
    gated_units_rescaled,
    one_hidden_layer,
    two_hidden_layers,
    with_scales,
    with_signs,
)
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp
from pyro_perm.symmetry.elements import Element, as_element

PROBLEMS = [
    with_scales(one_hidden_layer(activation=torch.relu)),
    with_scales(two_hidden_layers()),
    with_scales(flattened_channels()),
    with_scales(with_signs(one_hidden_layer(activation=torch.abs), plain=("w2",))),
    gated_units_rescaled(),
]


def guide_and_symmetry(
    problem: Problem, seed: int = 0
) -> tuple[AutoNormal, pp.PermutationSymmetry]:
    """A guide whose units overlap."""
    pyro.set_rng_seed(seed)
    guide = problem.base()
    guide(*problem.args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    symmetry = problem.symmetry()
    symmetry.bind(poutine.trace(problem.model).get_trace(*problem.args))
    return guide, symmetry.with_summable_scales()


def overlap(guide, problem, symmetry, num_samples=20):
    pyro.set_rng_seed(1)
    return pp.unit_overlap(guide, *problem.args, num_samples=num_samples, symmetry=symmetry)


@on_each(PROBLEMS)
def test_factors_on_other_parts_of_their_orbits_overlap_alike(problem):
    guide, symmetry = guide_and_symmetry(problem)
    before = overlap(guide, problem, symmetry)
    plain = overlap(guide, problem, pp.PermutationSymmetry(symmetry.group.compact_part.spec))
    scales = {
        name: Element(torch.arange(n), as_element(symmetry.sample()[name]).parts)
        for name, n in symmetry.groups.items()
    }
    for kind in ("locs", "scales"):
        values = {s: getattr(getattr(guide, kind), s).detach() for s in symmetry.sites}
        for site, value in symmetry.apply(scales, values).items():
            setattr(getattr(guide, kind), site, value)
    after = overlap(guide, problem, symmetry)
    for name, found in after.items():
        torch.testing.assert_close(found, before[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(found.sum(0), torch.ones(len(found)))
        if name in symmetry.group.open_groups:  # Orbits overlap where units do not.
            assert found.diagonal().mean() < plain[name].diagonal().mean()


def test_overlap_is_that_of_orbits_by_brute_force():
    problem = with_scales(one_hidden_layer(3, torch.relu))
    guide, symmetry = guide_and_symmetry(problem)
    pyro.set_rng_seed(1)
    draw = guide(*problem.args)
    found = overlap(guide, problem, symmetry, num_samples=1)["hidden"]

    def units(values):
        return torch.cat([values["w1"], values["b1"][:, None], values["w2"].mT], -1)

    w = units(draw)
    m, s = (
        units({k: getattr(kind, k).detach() for k in draw}) for kind in (guide.locs, guide.scales)
    )
    t = torch.linspace(-12, 12, 20_001)
    degrees = torch.tensor([1.0, 1.0, 1.0, -1.0])
    moved = w[:, None] * torch.exp(degrees * t[:, None])
    each = [Normal(m[i], s[i]).log_prob(moved).sum(-1) + degrees.sum() * t for i in range(3)]
    densities = torch.stack(each).logsumexp(-1)
    orders = torch.tensor(list(itertools.permutations(range(3))))
    weights = densities[torch.arange(3), orders].sum(-1).softmax(0)
    expected = torch.zeros(3, 3)
    for weight, order in zip(weights, orders, strict=True):
        expected[torch.arange(3), order] += weight
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
