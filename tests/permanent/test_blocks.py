"""Block-wise permanents agree with whole ones wherever the blocks are small enough to be exact."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from pyro_perm.permanent import (
    bethe_permanent,
    log_permanent,
    permanent_by_blocks,
    permutation_marginals,
)
from pyro_perm.permanent._bethe_bias import log_bethe_bias
from pyro_perm.permanent.blocks import (
    _labels,
    _strongly_connected,
    _weight_of_swaps_between,
)


def units(n, entries, spread, seed):
    """Log-densities of n sampled units under n Gaussian factors, ``spread`` scales apart."""
    generator = torch.Generator().manual_seed(seed)
    locs = spread * torch.randn(n, entries, generator=generator, dtype=torch.float64)
    values = locs + torch.randn(n, entries, generator=generator, dtype=torch.float64)
    return -0.5 * (values - locs.unsqueeze(-2)).square().sum(-1)


def dense_marginals(result, shape):
    """The marginals of the whole matrices: the identity outside of the blocks."""
    identity = torch.eye(shape[-1], dtype=torch.float64).expand(shape)
    return identity if result.excess is None else identity + result.excess


@settings(max_examples=examples(60))
@given(
    n=st.integers(1, 10),
    entries=st.integers(1, 8),
    spread=st.sampled_from([0.0, 0.3, 1.0, 2.0, 4.0, 20.0]),
    seed=st.integers(0, 2**16),
)
def test_small_matrices_are_exact(n, entries, spread, seed):
    matrix = units(n, entries, spread, seed)
    result = permanent_by_blocks(matrix)
    expected = log_permanent(matrix) - matrix.trace()
    torch.testing.assert_close(result.log_ratio, expected, rtol=0, atol=1e-6)
    marginals = dense_marginals(result, matrix.shape)
    torch.testing.assert_close(marginals, permutation_marginals(matrix), rtol=0, atol=1e-6)


@settings(max_examples=examples(60))
@given(n=st.integers(1, 64), links_each=st.floats(0.0, 3.0), seed=st.integers(0, 2**16))
def test_components_of_small_graphs_are_those_of_scipy(n, links_each, seed):
    links = np.random.default_rng(seed).random((n, n)) < links_each / n
    _, expected = connected_components(csr_array(links), connection="strong")
    found = _labels(links)
    assert ((found[:, None] == found) == (expected[:, None] == expected)).all()


@pytest.mark.parametrize("seed", range(6))
def test_components_of_large_graphs_are_those_of_scipy(seed):
    draw = np.random.default_rng(seed)
    links = draw.random((600, 600)) < 0.9
    links[400:] = links[:, 400:] = False  # apart from the rest, and that by chains and rings
    links[400:, 400:] = draw.random((200, 200)) < draw.uniform(0.0, 0.03)
    links[draw.integers(400), 400:] = True  # a way there and none back
    order = draw.permutation(600)
    links = links[order][:, order]
    _, labels = connected_components(csr_array(links), connection="strong")
    expected = {frozenset(np.flatnonzero(labels == label)) for label in set(labels)}
    found = {frozenset(part) for part in _strongly_connected(links)}
    assert max(map(len, found)) == 400
    assert found == {part for part in expected if len(part) > 1}


@pytest.mark.parametrize("parts", [[], [[0, 1, 2]], [[3, 4], [5, 0, 7]], [[6, 7], [1, 2], [4, 5]]])
def test_swaps_between_parts_are_counted_once(parts):
    log_weights = np.random.default_rng(0).normal(size=(8, 8))
    np.fill_diagonal(log_weights, -np.inf)
    part_of = {node: number for number, part in enumerate(parts) for node in part}
    expected = sum(
        math.exp(log_weights[i, j] + log_weights[j, i])
        for i, j in itertools.combinations(range(8), 2)
        if i not in part_of or part_of[i] != part_of.get(j)
    )
    found = _weight_of_swaps_between(log_weights, [np.array(part) for part in parts])
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_large_matrices_are_summed_in_their_own_precision(spread):
    matrix = units(300, 10, spread, 0).float()
    single, double = permanent_by_blocks(matrix), permanent_by_blocks(matrix.double())
    assert single.excess.dtype == torch.float32 and double.excess.dtype == torch.float64
    torch.testing.assert_close(single.log_ratio, double.log_ratio, rtol=0, atol=1e-3)
    torch.testing.assert_close(single.excess.double(), double.excess, rtol=0, atol=1e-5)


def test_small_matrices_are_summed_in_double_precision():
    matrix = units(30, 3, 0.3, 0).float()
    single, double = permanent_by_blocks(matrix), permanent_by_blocks(matrix.double())
    assert torch.equal(single.log_ratio, double.log_ratio)
    assert torch.equal(single.excess, double.excess)


def test_separate_blocks_multiply():
    blocks = [units(size, 3, 0.5, seed) for seed, size in enumerate((1, 2, 3, 5, 7, 9))]
    matrix = torch.block_diag(*(block + 1e6 for block in blocks)) - 1e6
    shuffle = torch.randperm(len(matrix))
    result = permanent_by_blocks(matrix[shuffle][:, shuffle])
    expected = sum(log_permanent(block) - block.trace() for block in blocks)
    torch.testing.assert_close(result.log_ratio, expected, rtol=0, atol=1e-8)


def bias_of(marginals):
    return torch.as_tensor(log_bethe_bias(marginals.numpy()))


def test_large_block_is_the_bethe_permanent_less_its_bias():
    matrix = units(30, 2, 0.3, 0)
    result, whole = permanent_by_blocks(matrix), bethe_permanent(matrix)
    corrected = whole.log_permanent + bias_of(whole.marginals)
    torch.testing.assert_close(result.log_ratio, corrected - matrix.trace(), rtol=0, atol=1e-3)
    marginals = dense_marginals(result, matrix.shape)
    torch.testing.assert_close(marginals, whole.marginals, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 11, 20])
def test_where_rows_coincide_the_bias_of_bethe_is_known(n):
    bias = math.lgamma(n + 1) - bethe_permanent(torch.zeros(n, n)).log_permanent
    torch.testing.assert_close(bias_of(torch.full((n, n), 1 / n)), bias)
    assert abs(bias.item() - 0.5 * math.log(2 * math.pi * n / math.e)) < 0.2


def test_where_rows_are_apart_bethe_has_no_bias():
    certain = torch.eye(12).expand(2, 3, 12, 12)
    torch.testing.assert_close(bias_of(certain), torch.zeros(2, 3))
    nearly = torch.lerp(torch.eye(12), torch.full((12, 12), 1 / 12), 1e-5)
    assert 0 <= bias_of(nearly) < 0.1


@settings(max_examples=examples(60))
@given(n=st.integers(2, 12), spread=st.floats(0.0, 5.0), seed=st.integers(0, 2**16))
def test_the_bias_lies_between_and_does_not_depend_on_the_order(n, spread, seed):
    marginals = bethe_permanent(units(n, 2, spread, seed)).marginals
    bias, largest = bias_of(marginals), bias_of(torch.full((n, n), 1 / n))
    assert -1e-9 <= bias <= largest + 1e-9
    shuffled = marginals[torch.randperm(n)][:, torch.randperm(n)]
    torch.testing.assert_close(bias_of(shuffled), bias)


def test_a_cycle_binds_units_though_no_swap_is_affordable():
    matrix = torch.full((12, 12), -100.0).fill_diagonal_(0.0)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        matrix[i, j] = 0.0
    result = permanent_by_blocks(matrix)
    torch.testing.assert_close(result.log_ratio, torch.tensor(2.0).log())
    marginals = dense_marginals(result, matrix.shape)
    torch.testing.assert_close(marginals[0, :3], torch.tensor([0.5, 0.5, 0.0]), rtol=0, atol=1e-6)


def test_a_swap_of_two_affordable_pairs_may_be_unaffordable():
    matrix = torch.full((12, 12), -100.0).double().fill_diagonal_(0.0)
    matrix[0, 1] = matrix[1, 0] = -12.0
    result = permanent_by_blocks(matrix)
    assert result.excess is None
    torch.testing.assert_close(result.log_ratio, log_permanent(matrix), rtol=0, atol=1e-10)


def test_what_one_row_saves_makes_the_cycles_of_others_affordable():
    matrix = torch.full((12, 12), -100.0).double().fill_diagonal_(0.0)
    matrix[0, 1], matrix[1, 2], matrix[2, 0] = -18.0, -18.0, 30.0
    result = permanent_by_blocks(matrix)
    torch.testing.assert_close(result.log_ratio, log_permanent(matrix), rtol=0, atol=1e-10)
    assert result.excess is not None


@pytest.mark.parametrize("sizes", list(itertools.combinations((2, 4, 6, 8, 11, 30), 2)))
def test_batches_are_solved_one_by_one(sizes):
    matrices = []
    for seed, size in enumerate(sizes):
        overlapping = units(size, 2, 0.3, seed)
        apart = units(40 - size, 2, 500.0, seed)
        matrices.append(torch.block_diag(overlapping + 1e6, apart + 1e6) - 1e6)
    stacked = torch.stack(matrices)
    batch = permanent_by_blocks(stacked)
    marginals = dense_marginals(batch, stacked.shape)
    for matrix, log_ratio, mine in zip(matrices, batch.log_ratio, marginals, strict=True):
        alone = permanent_by_blocks(matrix)
        torch.testing.assert_close(log_ratio, alone.log_ratio)
        torch.testing.assert_close(mine, dense_marginals(alone, matrix.shape))


def test_marginals_are_doubly_stochastic_and_certain_where_units_are_apart():
    matrix = torch.block_diag(units(15, 2, 0.5, 0) + 1e6, units(5, 2, 500.0, 1) + 1e6) - 1e6
    marginals = dense_marginals(permanent_by_blocks(matrix), matrix.shape)
    ones = torch.ones(20)
    torch.testing.assert_close(marginals.sum(0), ones, rtol=0, atol=1e-4)
    torch.testing.assert_close(marginals.sum(1), ones, rtol=0, atol=1e-4)
    torch.testing.assert_close(marginals[15:, 15:], torch.eye(5))


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_permute(n):
    result = permanent_by_blocks(torch.randn(3, n, n))
    assert result.log_ratio.tolist() == [0.0, 0.0, 0.0]
    assert result.excess is None


@pytest.mark.slow
def test_chains_of_weak_links_are_cut_into_exact_blocks():
    """A long chain of blocks, neighbours linked at a cost that is affordable but high."""
    blocks = [units(4, 2, 0.3, seed) for seed in range(5)]
    matrix = torch.full((20, 20), -torch.inf)
    for number, block in enumerate(blocks):
        mine = slice(4 * number, 4 * number + 4)
        matrix[mine, mine] = block
    for end in range(3, 19, 4):
        matrix[end, end + 1] = matrix[end + 1, end + 1] - 9.0
        matrix[end + 1, end] = matrix[end, end] - 9.0
    result = permanent_by_blocks(matrix)
    within = torch.block_diag(*(torch.ones(4, 4) for _ in range(5))) > 0
    assert torch.equal(result.excess != 0, within)
    expected = sum(log_permanent(block) - block.trace() for block in blocks)
    torch.testing.assert_close(result.log_ratio, expected)
    truth = log_permanent(matrix) - matrix.trace()
    torch.testing.assert_close(result.log_ratio, truth, rtol=0, atol=1e-6)
