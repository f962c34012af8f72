"""Draws modulo scales: what is due to these vanishes, and functions stay as they are."""

from __future__ import annotations

from functools import partial

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples, on_each
from problems import RESCALED_PROBLEMS, Problem, one_hidden_layer, two_hidden_layers, with_scales
from pyro import poutine
from torch import Tensor, nn
from torch.func import functional_call

import pyro_perm as pp
from pyro_perm import Axis
from pyro_perm.symmetry import Element

properties = settings(max_examples=examples(12))
problems = on_each(RESCALED_PROBLEMS)
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def bound(problem: Problem) -> pp.PermutationSymmetry:
    symmetry = problem.symmetry()
    symmetry.bind(poutine.trace(problem.model).get_trace(*problem.args))
    return symmetry


def latents(problem: Problem, *draws: int) -> dict[str, Tensor]:
    """Standard Normal values of all latent sites."""
    trace = poutine.trace(problem.model).get_trace(*problem.args)
    sites = {name: node["value"].shape for name, node in trace.iter_stochastic_nodes()}
    return {name: torch.randn(*draws, *shape) for name, shape in sites.items()}


def log_likelihoods(problem: Problem, draws: dict[str, Tensor]) -> Tensor:
    loss = pp.negative_log_likelihood(problem.model, *problem.args)
    num = len(next(iter(draws.values())))
    return -torch.stack([loss({k: v[i] for k, v in draws.items()}) for i in range(num)])


def balanced(symmetry: pp.PermutationSymmetry, values: dict[str, Tensor]) -> None:
    """Both ends of all units that are rescaled have the same norm."""
    for name in symmetry.group.open_groups:
        total = torch.zeros(())
        for site, axis in symmetry.group.factor(name).axes:
            entries = axis.units(values[site].square(), symmetry.site_rank(site))
            total = total + axis.scale * entries.sum(-1)
        close(total, torch.zeros_like(total))


@problems
def test_aligned_draws_are_balanced_and_compute_the_same(problem):
    symmetry, samples = bound(problem), latents(problem, 5)
    for reference in (None, latents(problem)):
        alignment = pp.align(samples, symmetry, reference)
        balanced(symmetry, alignment.samples)
        for site, value in symmetry.apply(alignment.permutations, samples).items():
            assert torch.equal(value, alignment.samples[site])
        found, expected = (log_likelihoods(problem, w) for w in (alignment.samples, samples))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    balanced(symmetry, alignment.reference)


@pytest.mark.slow
@properties
@given(st.sampled_from(RESCALED_PROBLEMS), st.booleans(), st.integers(0, 10**6))
def test_equivalent_draws_are_aligned_alike(problem, has_reference, seed):
    torch.manual_seed(seed)
    symmetry, samples = bound(problem), latents(problem, 4)
    reference = latents(problem) if has_reference else None
    first = pp.align(samples, symmetry, reference)
    second = pp.align(symmetry.apply(symmetry.sample((4,)), samples), symmetry, reference)
    for site in symmetry.sites:
        close(first.samples[site], second.samples[site])
        close(first.reference[site], second.reference[site])


@properties
@given(st.sampled_from(RESCALED_PROBLEMS), st.integers(0, 10**6))
def test_equivalent_draws_have_one_canonical_form(problem, seed):
    torch.manual_seed(seed)
    symmetry, samples = bound(problem), latents(problem, 3)
    moved = symmetry.apply(symmetry.sample((3,)), samples)
    first, second = (pp.canonical_order(each, symmetry) for each in (samples, moved))
    balanced(symmetry, first)
    for site in symmetry.sites:
        close(first[site], second[site])
    found, expected = (log_likelihoods(problem, each) for each in (first, samples))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    again = pp.canonical_order(first, symmetry)
    for site in symmetry.sites:
        close(again[site], first[site])


@problems
def test_a_reference_counts_up_to_its_own_scales(problem):
    symmetry, samples, reference = bound(problem), latents(problem, 3), latents(problem)
    scales = {
        name: Element(torch.arange(n), symmetry.sample()[name].parts)
        for name, n in symmetry.groups.items()
    }
    moved = symmetry.apply(scales, reference)
    assert not torch.allclose(moved[symmetry.sites[0]], reference[symmetry.sites[0]])
    first, second = (pp.align(samples, symmetry, each) for each in (reference, moved))
    for site in symmetry.sites:
        close(first.reference[site], second.reference[site])
        close(first.samples[site], second.samples[site])


def test_scales_that_hide_which_units_belong_together():
    """Unbalanced, large units of a draw are matched with large ones of the reference."""
    problem = with_scales(one_hidden_layer(20, torch.relu))
    symmetry, reference = bound(problem), latents(problem)
    near = {k: v + 0.01 * torch.randn(10, *v.shape) for k, v in reference.items()}
    g = symmetry.sample((10,))
    draws, right = symmetry.apply(g, near), g["hidden"].permutation.argsort(-1)
    found = pp.align(draws, symmetry, reference).permutations["hidden"].permutation
    assert torch.equal(found, right)
    plain = pp.PermutationSymmetry(
        one_hidden_layer().spec, shapes={s: v.shape for s, v in reference.items()}
    )
    unbalanced = pp.align(draws, plain, reference).permutations["hidden"]
    assert (unbalanced != right).any()


@pytest.mark.slow
def test_chains_on_other_parts_of_their_orbits_agree_once_aligned():
    problem = with_scales(two_hidden_layers())
    symmetry = bound(problem)
    center = {site: 3 * torch.randn(symmetry.site_shape(site)) for site in symmetry.sites}
    samples = {s: v + 0.05 * torch.randn(2, 100, *v.shape) for s, v in center.items()}
    moved = symmetry.apply(symmetry.sample((2, 1)), samples)
    result = pp.convergence_diagnostics(moved, symmetry)
    assert result.original.largest_rhat > 1.5
    assert result.aligned.largest_rhat < 1.1
    assert result.aligned.smallest_ess > 80


@problems
def test_there_is_no_barrier_between_equivalent_solutions(problem):
    symmetry, first = bound(problem), latents(problem)
    second = {**first, **symmetry.apply(symmetry.sample(), {s: first[s] for s in symmetry.sites})}
    loss = pp.negative_log_likelihood(problem.model, *problem.args)
    result = pp.interpolation_barrier(loss, first, second, symmetry, num_points=5)
    assert result.aligned.barrier == pytest.approx(0.0, abs=1e-9)
    close(result.aligned.losses, result.original.losses[:1].expand(5))


def test_the_ends_of_the_path_are_the_solutions():
    """Both are moved along their orbits, where the loss does not change."""
    problem = with_scales(one_hidden_layer(activation=torch.relu))
    symmetry, first, second = bound(problem), latents(problem), latents(problem)
    loss = pp.negative_log_likelihood(problem.model, *problem.args)
    result = pp.interpolation_barrier(loss, first, second, symmetry, num_points=3)
    for path in (result.original, result.aligned):
        close(path.losses[[0, -1]], torch.stack([loss(first), loss(second)]))
    middle = {}
    alignment = pp.align(second, symmetry, first)
    for site, value in alignment.samples.items():
        middle[site] = (value + {**first, **alignment.reference}[site]) / 2
    close(result.aligned.losses[1], loss(middle))


@pytest.fixture
def module_local():
    with pyro.settings.context(module_local_params=True):
        yield


def rescaled_guides(problem: Problem, symmetry: pp.PermutationSymmetry) -> list:
    """A guide, and the one whose draws are those of the first, permuted and rescaled alike."""
    guides = []
    for _ in range(2):
        guide = problem.base()
        guide(*problem.args)
        guides.append(guide)
    g = symmetry.sample()
    with torch.no_grad():
        for parameter in guides[0].parameters():
            parameter.copy_(torch.randn_like(parameter))
        guides[1].load_state_dict(guides[0].state_dict())
        for kind in ("locs", "scales"):
            values = {site: getattr(getattr(guides[0], kind), site) for site in symmetry.sites}
            for site, value in symmetry.apply(g, values).items():
                moved = value.abs() if kind == "scales" else value
                setattr(getattr(guides[1], kind), site, moved)
    return guides


@problems
def test_distance_is_zero_between_equivalent_posteriors_only(problem, module_local):
    symmetry = bound(problem)
    first, second = rescaled_guides(problem, symmetry)
    assert pp.wasserstein_distance(first, second, symmetry) < 1e-9
    site = symmetry.sites[0]
    setattr(second.scales, site, 1.5 * getattr(second.scales, site).detach())
    distance = pp.wasserstein_distance(first, second, symmetry)
    assert distance > 0.01
    assert pp.wasserstein_distance(second, first, symmetry) == pytest.approx(distance)


class Residual(nn.Module):
    """Two units' groups, one of them tied through a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.into = nn.Linear(3, 6), nn.Linear(6, 5)
        self.back, self.leave = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(x))
        h = h + self.back(torch.relu(self.into(h)))
        return self.leave(torch.relu(h))


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 3), nn.LeakyReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 3)),
    )


@pytest.mark.parametrize(
    ("network", "shape"), [(Residual, (9, 3)), (lenet, (6, 1, 14, 14))], ids=["residual", "lenet"]
)
def test_networks_with_the_scales_that_were_found_for_all_layers(network, shape):
    network, x = network().double(), torch.randn(shape)
    symmetry = pp.find_symmetry(network, x, scales=True)
    assert len(symmetry.group.open_groups) == len(symmetry.groups) > 1
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    copies = [symmetry.apply(symmetry.sample(), state) for _ in range(3)]
    expected = network(x).detach()
    alignment = pp.align(copies, symmetry)
    for copy, aligned in zip(copies, alignment.state_dicts, strict=True):
        for found in (aligned, pp.canonical_order(copy, symmetry)):
            output = functional_call(network, found, (x,))
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
        for name, value in alignment.state_dicts[0].items():
            close(aligned[name], value)


def test_single_precision_stays():
    problem = with_scales(two_hidden_layers())
    symmetry = bound(problem)
    samples = {site: value.float() for site, value in latents(problem, 4).items()}
    for found in (pp.align(samples, symmetry).samples, pp.canonical_order(samples, symmetry)):
        assert {value.dtype for value in found.values()} == {torch.float32}
        found, expected = (
            log_likelihoods(problem, {k: v.double() for k, v in draws.items()})
            for draws in (found, samples)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_dead_units_keep_their_scale():
    symmetry = pp.PermutationSymmetry(
        {"units": {"u": Axis(0, scale=1), "v": Axis(0, scale=-1)}}, shapes={"u": (3,), "v": (3,)}
    )
    draw = {"u": torch.tensor([1.0, 0.0, 4.0]), "v": torch.tensor([9.0, 5.0, 0.0])}
    assert {k: v.tolist() for k, v in pp.canonical_order(draw, symmetry).items()} == {
        "u": pytest.approx([0.0, 3.0, 4.0]),
        "v": pytest.approx([5.0, 3.0, 0.0]),
    }
