"""Chains and posteriors compared modulo the group: what is due to the order of units vanishes."""

import math

import arviz as az
import pyro
import pytest
import torch
from marks import on_each, slow
from problems import (
    PROBLEMS,
    SIGNED_PROBLEMS,
    Problem,
    local_latents,
    normal,
    one_hidden_layer,
    two_hidden_layers,
    units_in_plate,
    with_scales,
)
from pyro import poutine
from pyro.distributions import Dirichlet, Normal
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

import pyro_perm as pp


def bound(problem):
    symmetry = problem.symmetry()
    symmetry.bind(poutine.trace(problem.model).get_trace(*problem.args))
    return symmetry


def trained(problem, seed=0, **kwargs):
    """A guide with arbitrary locs and scales."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    guide = problem.base(**kwargs)
    guide(*problem.args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return guide


def permuted(guide, problem, symmetry, seed=1):
    """Another guide with the same parameters, the units in another order."""
    g = symmetry.sample(generator=torch.Generator().manual_seed(seed))
    other = trained(problem)
    other.load_state_dict(guide.state_dict())
    with torch.no_grad():
        for kind in ("locs", "scales"):
            values = {site: getattr(getattr(guide, kind), site) for site in symmetry.sites}
            for site, value in symmetry.apply(g, values).items():
                setattr(getattr(other, kind), site, value.abs() if kind == "scales" else value)
    return other


@pytest.fixture
def module_local():
    with pyro.settings.context(module_local_params=True):
        yield


def test_chains_in_different_modes_agree_once_aligned():
    symmetry = bound(one_hidden_layer(3))
    center = {site: 3 * torch.randn(symmetry.site_shape(site)) for site in symmetry.sites}
    samples = {s: v + 0.1 * torch.randn(3, 100, *v.shape) for s, v in center.items()}
    hidden = torch.tanh(samples["w1"].sum(-1) * samples["b1"])
    function = (hidden * samples["w2"][..., 0, :]).sum(-1)
    chains = {"hidden": torch.tensor([[0, 1, 2], [1, 2, 0], [2, 1, 0]])[:, None]}
    moved = symmetry.apply(chains, samples) | {"noise": torch.rand(3, 100)}
    result = pp.convergence_diagnostics(moved, symmetry, {"f": function})
    assert result.original.largest_rhat > 2
    assert result.original.smallest_ess < 20
    assert result.aligned.largest_rhat < 1.05
    assert result.aligned.smallest_ess > 100
    assert result.functions.largest_rhat < 1.05
    assert result.aligned.rhat["w1"].shape == (3, 2)
    assert result.aligned.ess["noise"].shape == ()
    expected = az.ess(moved["w1"][:, :, 1, 0].numpy())
    assert result.original.ess["w1"][1, 0] == pytest.approx(expected)
    assert pp.convergence_diagnostics(moved, symmetry).functions is None


@pytest.mark.parametrize("shape", [(100,), (1, 100), (2, 3)])
def test_too_few_chains_or_draws_are_refused(shape):
    symmetry = bound(one_hidden_layer(3))
    samples = {site: torch.randn(*shape, *symmetry.site_shape(site)) for site in symmetry.sites}
    with pytest.raises(ValueError, match=r"at least 2 chains of 4 draws"):
        pp.convergence_diagnostics({"f": torch.randn(shape)} | samples, symmetry)


@on_each([*PROBLEMS, *SIGNED_PROBLEMS])
def test_distance_is_zero_between_equivalent_posteriors_only(problem, module_local):
    symmetry = bound(problem)
    guide = trained(problem)
    equivalent = permuted(guide, problem, symmetry)
    assert pp.wasserstein_distance(guide, equivalent, symmetry) < 1e-12
    site = symmetry.sites[0]
    setattr(equivalent.scales, site, 1.5 * getattr(equivalent.scales, site).detach())
    assert pp.wasserstein_distance(guide, equivalent, symmetry) > 0.01


@pytest.mark.parametrize("problem", [one_hidden_layer(4), *slow(two_hidden_layers())], ids=str)
def test_distance_is_a_symmetric_minimum_over_the_group(problem, module_local):
    symmetry = bound(problem)
    first, second, third = (trained(problem, seed) for seed in range(3))

    def distance(a, b):
        return pp.wasserstein_distance(a, b, symmetry)

    assert distance(first, second) == distance(second, first)
    assert distance(first, third) <= distance(first, second) + distance(second, third)
    moved = permuted(second, problem, symmetry)
    assert distance(first, moved) == pytest.approx(distance(first, second))


def test_distance_is_that_of_gaussians(module_local):
    """One unit: nothing to permute, and Wasserstein-2 in closed form, all sites counted."""

    def model():
        normal("w", 1)
        pyro.sample("noise", Normal(0.0, 1.0).expand([2]).to_event(1))

    symmetry = pp.PermutationSymmetry({"hidden": {"w": 0}}, shapes={"w": (1,)})
    first, second = (trained(Problem("", model, (), {}), seed) for seed in range(2))
    square = 0.0
    for site in ("w", "noise"):
        (m, s), (n, t) = (guide._get_loc_and_scale(site) for guide in (first, second))
        square += ((m - n) ** 2 + (s - t) ** 2).sum().item()
    distance = pp.wasserstein_distance(first, second, symmetry=symmetry)
    assert distance == pytest.approx(math.sqrt(square))


def test_symmetrized_guides_bring_their_group(module_local):
    problem = units_in_plate()
    guide = pp.AutoSymmetrized(trained(problem), problem.symmetry())
    guide(*problem.args)
    assert pp.wasserstein_distance(guide, guide.base) == 0.0
    with pytest.raises(ValueError, match="neither guide is symmetrized: give the group"):
        pp.wasserstein_distance(guide.base, guide.base)


@pytest.mark.parametrize("swaps", [False, True])
def test_distance_is_modulo_the_larger_group_of_the_two(swaps, module_local):
    plain = one_hidden_layer(3, torch.relu)
    larger = with_scales(plain)
    guides = []
    for seed, problem in enumerate((plain, larger)):
        guides.append(pp.AutoSymmetrized(trained(plain, seed), problem.symmetry()))
        guides[-1](*problem.args)
    expected = pp.wasserstein_distance(*guides, bound(larger))
    assert expected != pytest.approx(pp.wasserstein_distance(*guides, bound(plain)))
    found = pp.wasserstein_distance(*(guides[::-1] if swaps else guides))
    assert found == pytest.approx(expected)


def test_guides_of_the_same_parameters_have_no_distance():
    problem = one_hidden_layer()
    symmetry, first = bound(problem), trained(problem)
    second = problem.base()
    second(*problem.args)
    with pytest.raises(ValueError, match=r"go by one 'AutoNormal\.locs\.w1' of Pyro's param store"):
        pp.wasserstein_distance(first, second, symmetry)
    assert pp.wasserstein_distance(first, first, symmetry) == 0.0


def test_guides_without_a_distance_are_refused(module_local):
    problem = one_hidden_layer()
    symmetry, guide = bound(problem), trained(problem)
    packed = AutoDiagonalNormal(problem.model)
    with pytest.raises(TypeError, match="but a guide is a AutoDiagonalNormal"):
        pp.wasserstein_distance(guide, packed, symmetry)
    partial = AutoNormal(poutine.block(problem.model, hide=["b2"]))
    with pytest.raises(ValueError, match="a guide has no parameters yet: train it"):
        pp.wasserstein_distance(guide, partial, symmetry)
    partial(*problem.args)
    with pytest.raises(ValueError, match="the guides differ in their sites"):
        pp.wasserstein_distance(guide, partial, symmetry)


def test_alignment_removes_the_barrier_between_equivalent_solutions():
    problem = one_hidden_layer(6)
    symmetry, guide = bound(problem), trained(problem)
    first = guide.median()
    second = symmetry.apply({"hidden": torch.arange(6).roll(1)}, first)
    loss = pp.negative_log_joint(problem.model, *problem.args)
    result = pp.interpolation_barrier(loss, first, second, symmetry, num_points=5)
    assert result.aligned.barrier == pytest.approx(0.0, abs=1e-9)
    assert result.original.losses[0].item() == pytest.approx(loss(first).item())
    middle = {site: (first[site] + second[site]) / 2 for site in first}
    rise = loss(middle) - loss(first)
    assert result.original.fractions[2] == 0.5
    assert (result.original.losses[2] - result.original.losses[0]).item() == pytest.approx(
        rise.item()
    )
    assert result.original.barrier >= rise.item() - 1e-9


def test_barrier_is_the_rise_above_the_chord():
    symmetry = pp.PermutationSymmetry({"pair": {"w": 0}}, shapes={"w": (2,)})
    first, second = {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([3.0, 0.0])}

    def loss(values):  # Invariant; concave along the line, with its ends at 1 and 9.
        return values["w"].square().sum() + 10 * values["w"].prod()

    result = pp.interpolation_barrier(loss, first, second, symmetry, num_points=3)
    assert result.original.barrier == pytest.approx(2.5 + 10 * 0.75 - 5)
    assert result.aligned.barrier == 0.0
    assert result.aligned.losses.tolist() == pytest.approx([1.0, 4.0, 9.0])


def test_losses_split_the_log_joint_over_all_of_the_data():
    problem = local_latents()
    values = {
        name: torch.randn(shape)
        for name, shape in {"w1": (3, 2), "w2": (1, 3), "shift": (10,)}.items()
    }
    joint, likelihood = (
        loss(problem.model, *problem.args)(values)
        for loss in (pp.negative_log_joint, pp.negative_log_likelihood)
    )
    prior = -sum(Normal(0.0, 1.0).log_prob(value).sum() for value in values.values())
    x, y = problem.args
    f = (torch.tanh(x @ values["w1"].T) @ values["w2"].T)[:, 0] + values["shift"]
    torch.testing.assert_close(likelihood, -Normal(f, 0.5).log_prob(y).sum())
    torch.testing.assert_close(joint, likelihood + prior)


def test_distance_of_probability_vectors_is_refused(module_local):
    def model():
        pyro.sample("p", Dirichlet(torch.ones(3)))

    problem = Problem("", model, (), {"classes": {"p": 0}})
    guide = trained(problem)
    with pytest.raises(ValueError, match="site 'p' holds probability vectors"):
        pp.wasserstein_distance(guide, guide, bound(problem))


def test_solutions_that_do_not_fit_are_refused():
    problem = one_hidden_layer()
    symmetry, first = bound(problem), trained(problem).median()
    loss = pp.negative_log_joint(problem.model, *problem.args)
    partial = {site: value for site, value in first.items() if site != "b2"}
    with pytest.raises(ValueError, match="the solutions differ in their sites"):
        pp.interpolation_barrier(loss, first, partial, symmetry)
    with pytest.raises(ValueError, match="the solution has no 'b2', so these latent sites"):
        pp.interpolation_barrier(loss, partial, partial, symmetry)
    with pytest.raises(ValueError, match="num_points must be at least 3"):
        pp.interpolation_barrier(loss, first, first, symmetry, num_points=2)
