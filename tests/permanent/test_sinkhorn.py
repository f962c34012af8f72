import math

import pytest
import torch
from enumeration import log_matrices
from hypothesis import given, settings
from marks import examples
from torch.testing import assert_close

from pyro_perm.permanent import log_permanent, sinkhorn

properties = settings(max_examples=examples(40))


@properties
@given(log_matrices(8, scales=(0.5, 2.0)))
def test_scales_to_a_doubly_stochastic_matrix(log_matrix):
    result = sinkhorn(log_matrix, max_iterations=5000, tolerance=1e-8)
    scaled, ones = result.log_scaled.exp(), torch.ones(len(log_matrix), dtype=torch.double)
    assert result.converged
    assert_close(scaled.sum(-1), ones, atol=1e-8, rtol=0)
    assert_close(scaled.sum(-2), ones, atol=1e-8, rtol=0)
    scaling = result.log_rows[:, None] + result.log_columns
    assert_close(result.log_scaled, log_matrix + scaling)
    assert_close(
        log_permanent(result.log_scaled), log_permanent(log_matrix) + scaling.diagonal().sum()
    )


def test_two_by_two_has_a_closed_form():
    # P_11 = sqrt(ad) / (sqrt(ad) + sqrt(bc)).
    a, b, c, d = 0.3, -1.0, 2.0, 0.7
    result = sinkhorn(torch.tensor([[a, b], [c, d]]).double(), tolerance=1e-12)
    expected = torch.sigmoid(torch.tensor((a + d - b - c) / 2).double())
    assert_close(result.log_scaled[0, 0].exp(), expected)


def test_a_doubly_stochastic_matrix_stays():
    result = sinkhorn(torch.full((2, 5, 5), -math.log(5.0), dtype=torch.double))
    assert result.num_iterations == 0
    assert_close(result.log_rows, torch.zeros(2, 5, dtype=torch.double))


def test_wide_ranges_and_single_precision():
    log_matrix = torch.tensor([[0.0, -1e4], [0.0, -1e4]], dtype=torch.float32)
    result = sinkhorn(log_matrix)
    assert result.converged and result.log_scaled.dtype == torch.float32
    assert_close(result.log_scaled.exp(), torch.full((2, 2), 0.5, dtype=torch.float32))


@pytest.mark.parametrize("dim", [0, 1])
def test_an_empty_line_cannot_converge(dim):
    log_matrix = torch.zeros(3, 3).index_fill(dim, torch.tensor([1]), -math.inf)
    result = sinkhorn(log_matrix, max_iterations=10)
    assert not result.converged
    assert result.residual.item() >= 1.0
    assert result.log_rows.isfinite().all() and result.log_columns.isfinite().all()


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match="shape"):
        sinkhorn(torch.zeros(3, 4))
