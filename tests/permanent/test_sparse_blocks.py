"""Rows that blocks lie in, found on lists of pairs that cost little."""

import pytest
import torch
from marks import slow

from pyro_perm.permanent import permanent_by_blocks
from pyro_perm.permanent._sparse_blocks import rows_in_blocks


def matrix_with_blocks(sizes, size=400, apart=60.0):
    """Rows far apart but for some sets of them, whose numbers are returned, too."""
    log_matrix = torch.full((size, size), -apart) + 5 * torch.randn(size, size)
    order, start, blocks = torch.randperm(size), 0, []
    for num in sizes:
        rows = order[start : start + num]
        log_matrix[rows[:, None], rows] = torch.randn(num, num)
        blocks.append(rows)
        start += num
    log_matrix.diagonal().copy_(torch.randn(size))
    return log_matrix.double(), blocks


@pytest.mark.parametrize("sizes", [[2, 3], [7, 12], *slow([30], [2] * 40)])
def test_blocks_lie_in_few_rows_and_the_permanent_is_that_of_these(sizes):
    log_matrix, blocks = matrix_with_blocks(sizes)
    rows = rows_in_blocks(log_matrix)
    assert set(torch.cat(blocks).tolist()) <= set(rows.tolist())
    assert len(rows) < 2 * sum(sizes) + 20
    whole = permanent_by_blocks(log_matrix)
    few = permanent_by_blocks(log_matrix[rows][:, rows])
    assert few.log_ratio.item() == pytest.approx(whole.log_ratio.item(), abs=1e-6)
    excess = torch.zeros_like(log_matrix)
    excess[rows[:, None], rows] = few.excess
    torch.testing.assert_close(excess, whole.excess.double(), rtol=0.0, atol=1e-6)


def test_rows_that_no_cycle_leads_through_are_in_no_block():
    log_matrix, _ = matrix_with_blocks([])
    log_matrix[3, 5] = log_matrix[5, 9] = 0.0  # One way only.
    assert rows_in_blocks(log_matrix).tolist() == []


def test_rows_of_a_batch_are_those_of_any_of_its_matrices():
    one, two = matrix_with_blocks([2]), matrix_with_blocks([3])
    rows = rows_in_blocks(torch.stack([one[0], two[0]]))
    expected = {*torch.cat([*one[1], *two[1]]).tolist()}
    assert set(rows.tolist()) == expected


@pytest.mark.parametrize("sizes, size", [([], 100), ([300], 400), ([2] * 150, 400)])
def test_small_matrices_and_those_of_many_blocks_are_taken_whole(sizes, size):
    log_matrix, _ = matrix_with_blocks(sizes, size)
    assert rows_in_blocks(log_matrix) is None
