"""Alignment: equivalent weights coincide, and no permutation comes closer to the reference."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples, on_each
from problems import (
    PROBLEMS,
    SIGNED_PROBLEMS,
    one_hidden_layer,
    recurrent,
    three_hidden_layers,
    two_hidden_layers,
    with_signs,
)
from pyro import poutine

import pyro_perm as pp
from pyro_perm.posterior.modulo.weight_matching import Matching, match, step

properties = settings(max_examples=examples(20))
COUPLED = [two_hidden_layers(), three_hidden_layers(), recurrent(4), with_signs(recurrent(4))]
ALL = [*PROBLEMS, *SIGNED_PROBLEMS]


def bound(problem):
    symmetry = problem.symmetry()
    symmetry.bind(poutine.trace(problem.model).get_trace(*problem.args))
    return symmetry


def weights(symmetry, *draws):
    return {site: torch.randn(*draws, *symmetry.site_shape(site)) for site in symmetry.sites}


def near(symmetry, reference, draws, spread):
    noise = weights(symmetry, draws)
    return {site: reference[site] + spread * noise[site] for site in symmetry.sites}


def same(first, second):
    return all(torch.equal(first[site], second[site]) for site in first)


def elements(size, signed):
    signs = list(itertools.product((False, True), repeat=size)) if signed else [(False,) * size]
    for permutation in itertools.permutations(range(size)):
        for flips in signs:
            yield [~unit if flip else unit for unit, flip in zip(permutation, flips, strict=True)]


def distances_over_the_group(symmetry, values, reference):
    """Squared distance after every element, shape ``(|G|, draws)``; the identity comes first."""
    tables = [elements(n, group in symmetry.signed_groups) for group, n in symmetry.groups.items()]
    group = list(itertools.product(*tables))
    assert math.log(len(group)) == pytest.approx(symmetry.log_order)
    permutations = {
        name: torch.tensor([element[i] for element in group])[:, None]
        for i, name in enumerate(symmetry.groups)
    }
    moved = symmetry.apply(permutations, values)
    return sum((moved[site] - reference[site]).square().flatten(2).sum(-1) for site in values)


@properties
@given(st.sampled_from(ALL), st.integers(0, 10**6))
def test_a_permuted_copy_aligns_back_exactly(problem, seed):
    torch.manual_seed(seed)
    symmetry = bound(problem)
    original = weights(symmetry)
    g = symmetry.sample((3,))
    aligned = pp.align(symmetry.apply(g, original), symmetry, original)
    assert all(
        torch.equal(value, original[site].expand_as(value))
        for site, value in aligned.samples.items()
    )
    assert same(aligned.permutations, symmetry.inverse(g))


@pytest.mark.slow
@properties
@given(st.sampled_from(ALL), st.booleans(), st.integers(0, 10**6))
def test_the_result_does_not_depend_on_a_permutation_of_the_input(problem, has_reference, seed):
    torch.manual_seed(seed)
    symmetry = bound(problem)
    samples = weights(symmetry, 5)
    reference = weights(symmetry) if has_reference else None
    first = pp.align(samples, symmetry, reference)
    second = pp.align(symmetry.apply(symmetry.sample((5,)), samples), symmetry, reference)
    assert same(first.samples, second.samples)
    assert same(first.reference, second.reference)


@on_each(ALL)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_no_permutation_is_closer_to_the_reference(problem, spread):
    symmetry = bound(problem)
    reference = weights(symmetry)
    samples = near(symmetry, reference, 20, spread)
    aligned = pp.align(samples, symmetry, reference).samples
    closest = distances_over_the_group(symmetry, samples, reference).amin(0)
    found = distances_over_the_group(symmetry, aligned, reference)[0]
    if problem.is_coupled:  # Coordinate descent may end elsewhere, but seldom does.
        assert (found <= closest + 1e-9).double().mean() >= 0.85
    else:
        torch.testing.assert_close(found, closest)


@pytest.mark.parametrize("problem", COUPLED, ids=str)
def test_the_cost_never_rises_along_coordinate_descent(problem):
    symmetry = bound(problem)
    matching = Matching(symmetry.group, weights(symmetry, 30), weights(symmetry))
    permutations = symmetry.sample((30,))
    costs = [matching.squared_distance(permutations)]
    for group in 3 * list(symmetry.spec):
        permutations = step(matching, permutations, group)
        costs.append(matching.squared_distance(permutations))
    costs = torch.stack(costs)
    assert (costs.diff(dim=0) <= 0).all()
    assert costs[-1].mean() < 0.9 * costs[0].mean()


def test_restarts_come_closer():
    symmetry = bound(two_hidden_layers(7, 8))
    reference, samples = weights(symmetry), weights(symmetry, 20)
    matching = Matching(symmetry.group, samples, reference)
    few, many = (
        matching.squared_distance(match(matching, num_restarts)) for num_restarts in (0, 10)
    )
    assert (many <= few).all()
    assert (many < few).any()


def test_without_a_reference_draws_are_close_to_their_mean():
    symmetry = bound(one_hidden_layer(4))
    samples = near(symmetry, weights(symmetry), 12, 0.6)
    aligned = pp.align(symmetry.apply(symmetry.sample((12,)), samples), symmetry)
    for site, value in aligned.samples.items():
        torch.testing.assert_close(aligned.reference[site], value.mean(0))
    over_group = distances_over_the_group(symmetry, aligned.samples, aligned.reference)
    torch.testing.assert_close(over_group.amin(0), over_group[0])


def test_canonical_order_is_lexicographic():
    symmetry = pp.PermutationSymmetry({"hidden": {"w": 0, "b": 0}}, shapes={"w": (3, 1), "b": (3,)})
    unsorted = {"w": torch.tensor([[2.0], [1.0], [1.0]]), "b": torch.tensor([0.0, 5.0, 4.0])}
    aligned = pp.align(unsorted, symmetry)
    assert aligned.samples["w"].flatten().tolist() == [1.0, 1.0, 2.0]
    assert aligned.samples["b"].tolist() == [4.0, 5.0, 0.0]
    assert aligned.permutations["hidden"].tolist() == [2, 1, 0]


def test_units_that_tie_do_not_bring_back_the_input_order():
    symmetry = bound(one_hidden_layer(5))
    reference = {site: torch.zeros(symmetry.site_shape(site)) for site in symmetry.sites}
    samples = weights(symmetry, 4)
    moved = symmetry.apply(symmetry.sample((4,)), samples)
    first, second = (pp.align(w, symmetry, reference).samples for w in (samples, moved))
    assert same(first, second)
    some = torch.tensor([0, 0, 2, 2, 4])
    twins = {
        site: value.index_select(symmetry.actions_on(site)[0][1].dim, some)
        for site, value in samples.items()
    }
    moved = symmetry.apply(symmetry.sample((4,)), twins)
    assert same(pp.align(twins, symmetry).samples, pp.align(moved, symmetry).samples)


def test_chains_other_sites_and_precision_are_kept():
    symmetry = bound(two_hidden_layers())
    samples = {site: value.float() for site, value in weights(symmetry, 2, 6).items()}
    samples["noise"] = torch.rand(2, 6)
    aligned = pp.align(samples, symmetry)
    assert aligned.samples["noise"] is samples["noise"]
    assert aligned.samples["w2"].shape == (2, 6, 4, 3)
    assert aligned.samples["w2"].dtype == torch.float32
    assert aligned.permutations["second"].shape == (2, 6, 4)
    assert same(symmetry.apply(aligned.permutations, samples), aligned.samples)


def test_groups_of_one_unit_stay():
    symmetry = bound(one_hidden_layer(1))
    samples = weights(symmetry, 3)
    assert same(pp.align(samples, symmetry).samples, samples)


def test_another_guides_locs_align():
    problem = one_hidden_layer(6)
    guide = problem.guide()
    guide(*problem.args)
    locs = guide.median()
    moved = guide.symmetry.apply(guide.symmetry.sample(), locs)
    aligned = pp.align(moved, guide.symmetry, locs)
    assert same(aligned.samples, locs)
    assert aligned.permutations["hidden"].shape == (6,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("b1"), "samples has no site 'b1', which group 'hidden' permutes"),
        (lambda s: s.update(w1=s["w1"].mT), r"site 'w1' of samples: the shape .* \(4, 2\)"),
        (lambda s: s.update(b1=torch.zeros(4)), r"differ: \(3,\) at site 'w1', but \(\) at .*'b1'"),
        (lambda s: s["w2"].fill_(torch.nan), "site 'w2' of samples has values that are not finite"),
        (lambda s: s.update({k: v[:0] for k, v in s.items()}), "samples has no draws"),
    ],
)
def test_samples_that_do_not_fit_are_refused(change, message):
    symmetry = bound(one_hidden_layer())
    samples = weights(symmetry, 3)
    change(samples)
    with pytest.raises(ValueError, match=message):
        pp.align(samples, symmetry)


def test_references_that_do_not_fit_are_refused():
    symmetry = bound(one_hidden_layer())
    samples = weights(symmetry, 3)
    with pytest.raises(ValueError, match=r"leading dimensions \(3,\): take one draw"):
        pp.align(samples, symmetry, samples)
    with pytest.raises(ValueError, match="reference has no site 'w1'"):
        pp.align(samples, symmetry, {})
    with pytest.raises(ValueError, match="group sizes are not known yet"):
        pp.align(samples, one_hidden_layer().symmetry())
