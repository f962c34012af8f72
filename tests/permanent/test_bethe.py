import math

import pytest
import torch
from enumeration import log_matrices
from hypothesis import given, settings
from marks import examples
from torch import Tensor
from torch.testing import assert_close

from pyro_perm.permanent import _propagation as propagation
from pyro_perm.permanent import (
    bethe_permanent,
    log_bethe_permanent,
    log_permanent,
    permutation_marginals,
    sinkhorn,
)

INF = math.inf
properties = settings(max_examples=examples(20))


def gaussian(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.double, generator=generator)


def unit_densities(units: int, weights: int, spread: float, seed: int = 0) -> Tensor:
    """Log-densities of samples of ``units`` Gaussians under each of them."""
    means = gaussian(units, weights, scale=spread, seed=seed)
    samples = means + gaussian(units, weights, seed=seed + 1)
    return -0.5 * (samples - means[:, None]).square().sum(-1)


def free_energy(log_matrix: Tensor, marginals: Tensor) -> Tensor:
    """The objective that the Bethe permanent maximizes over doubly stochastic matrices."""
    permitted = log_matrix.masked_fill(log_matrix == -INF, 0.0)
    entropy = torch.special.entr(marginals) - torch.special.entr(1 - marginals)
    return (marginals * permitted + entropy).sum((-2, -1))


@properties
@given(log_matrices(8, scales=(0.3, 1.0, 5.0, 100.0, 1e4)))
def test_bounds_of_gurvits_and_anari_rezaei(log_matrix):
    result = bethe_permanent(log_matrix, max_iterations=5000)
    assert result.converged
    gap = (log_permanent(log_matrix) - result.log_permanent).item()
    assert -1e-5 <= gap <= log_matrix.shape[-1] / 2 * math.log(2) + 1e-5


@properties
@given(log_matrices(8, scales=(0.3, 1.0, 3.0)))
def test_maximizes_the_bethe_free_energy(log_matrix):
    result = bethe_permanent(log_matrix, max_iterations=5000, tolerance=1e-9)
    balanced = sinkhorn(result.marginals.log(), max_iterations=5000, tolerance=1e-12)
    optimum = free_energy(log_matrix, balanced.log_scaled.exp())
    assert_close(result.log_permanent, optimum, atol=1e-6, rtol=0)
    for other in (permutation_marginals(log_matrix), sinkhorn(log_matrix).log_scaled.exp()):
        assert free_energy(log_matrix, other) <= result.log_permanent + 1e-5


@pytest.mark.parametrize("size", [2, 4, 20, 400])
def test_equal_weights_have_a_closed_form(size):
    log_matrix = torch.full((size, size), 3.0, dtype=torch.double)
    uniform = torch.full_like(log_matrix, 1 / size)
    result = bethe_permanent(log_matrix)
    assert result.converged
    assert_close(result.marginals, uniform)
    assert_close(result.log_permanent, free_energy(log_matrix, uniform))


@pytest.mark.parametrize("entry", [-1e4, 0.0, 2.5, 1e4])
def test_single_unit_is_exact(entry):
    result = bethe_permanent(torch.tensor([[entry]]))
    assert result.converged
    assert result.log_permanent.item() == pytest.approx(entry, abs=1e-12)
    assert result.marginals.item() == pytest.approx(1.0)


@properties
@given(log_matrices(2, scales=(3.0, 100.0, 1e4)).filter(lambda x: len(x) == 2))
def test_two_units_take_the_better_permutation(log_matrix):
    straight, crossed = log_matrix.trace().item(), log_matrix.flip(-1).trace().item()
    value = log_bethe_permanent(log_matrix, max_iterations=1000)
    assert value.item() == pytest.approx(max(straight, crossed), abs=1e-5)


@properties
@given(log_matrices(10, scales=(1.0, 5.0)))
def test_symmetries(log_matrix):
    size = log_matrix.shape[-1]
    order, options = torch.randperm(size), {"max_iterations": 5000, "tolerance": 1e-8}
    result = bethe_permanent(log_matrix, **options)
    rows, columns = gaussian(size, scale=500.0, seed=1), gaussian(size, scale=500.0, seed=2)
    scaled = bethe_permanent(log_matrix + rows[:, None] + columns, **options)

    def value(matrix: Tensor) -> Tensor:
        return log_bethe_permanent(matrix, max_iterations=5000, tolerance=1e-8)

    assert_close(value(log_matrix.mT), result.log_permanent, atol=1e-6, rtol=0)
    assert_close(value(log_matrix[order]), result.log_permanent, atol=1e-6, rtol=0)
    scale = rows.sum() + columns.sum()
    assert_close(scaled.log_permanent, result.log_permanent + scale, atol=1e-6, rtol=0)
    assert_close(scaled.marginals, result.marginals, atol=1e-5, rtol=0)


def test_blocks_multiply():
    first, second = gaussian(6, 6), gaussian(9, 9, seed=1)
    joint = torch.full((15, 15), -INF, dtype=torch.double)
    joint[:6, :6], joint[6:, 6:] = first, second
    expected = log_bethe_permanent(first) + log_bethe_permanent(second)
    assert_close(log_bethe_permanent(joint), expected)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_gradient_is_the_derivative(scale):
    def value(x: Tensor) -> Tensor:
        return log_bethe_permanent(x, max_iterations=2000, tolerance=1e-13)

    assert torch.autograd.gradcheck(value, gaussian(2, 6, 6, scale=scale).requires_grad_())


def test_second_derivatives_are_refused_rather_than_wrong():
    log_matrix = gaussian(3, 3).requires_grad_()
    value = log_bethe_permanent(log_matrix)
    with pytest.raises(RuntimeError, match="the Bethe permanent has no second derivatives"):
        torch.autograd.grad(value, log_matrix, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("off_diagonal", [-30.0, -1e3, -INF])
@pytest.mark.parametrize("size", [2, 3, 50])
def test_near_permutation(size, off_diagonal, dtype):
    log_matrix = torch.full((size, size), off_diagonal, dtype=dtype).fill_diagonal_(0.25)
    log_matrix.requires_grad_()
    result = bethe_permanent(log_matrix)
    result.log_permanent.backward()
    assert result.converged
    assert result.log_permanent.item() == pytest.approx(size / 4, abs=1e-10)
    assert_close(log_matrix.grad, torch.eye(size, dtype=dtype))


def test_identical_rows_share_their_columns():
    rows = torch.tensor([[0.0, -1e3, -2.0], [0.0, -1e3, -2.0], [-5.0, -1e3, 1.0]])
    result = bethe_permanent(rows, max_iterations=2000)
    assert result.converged
    assert_close(result.marginals[0], result.marginals[1])
    gap = log_permanent(rows) - result.log_permanent
    assert 0 <= gap <= 1.5 * math.log(2)


def test_alternating_messages_come_to_rest():
    # Both 2-by-2 permutations of rows 0, 1 and columns 0, 1 tie, out of balance.
    tie = torch.tensor([[0.0, 1.0, -9.0], [0.0, 1.0, 2.0], [1.0, 0.0, 9.0]], dtype=torch.double)
    result = bethe_permanent(1000 * tie)
    assert result.converged
    assert result.log_permanent.item() == pytest.approx(10000.0)
    assert_close(result.marginals.sum(-2), torch.ones(3, dtype=torch.double))


@pytest.mark.parametrize("scale", [300.0, 1e4])
def test_wide_ranges_give_the_best_assignment(scale):
    optimize = pytest.importorskip("scipy.optimize")
    log_matrix = gaussian(50, 50, scale=scale)
    rows, columns = optimize.linear_sum_assignment(log_matrix.numpy(), maximize=True)
    result = bethe_permanent(log_matrix)
    assert result.converged
    assert_close(result.log_permanent, log_matrix[rows, columns].sum(), atol=1e-4, rtol=0)
    assert (result.marginals.argmax(-1) == torch.as_tensor(columns)).all()


def test_sparse_matrices_agree_with_vanishing_weights():
    log_matrix = gaussian(12, 12)
    absent = (torch.rand(12, 12, generator=torch.Generator().manual_seed(4)) < 0.6) & ~torch.eye(
        12, dtype=torch.bool
    )
    sparse, faint = (log_matrix.masked_fill(absent, value) for value in (-INF, -1e5))
    result = bethe_permanent(sparse)
    assert result.converged
    assert (result.marginals[absent] == 0).all()
    assert_close(result.log_permanent, log_bethe_permanent(faint))


@pytest.mark.parametrize(
    "pattern", [[[-INF]], [[-INF, 0.0], [-INF, 0.0]], [[0, -INF, -INF], [0, -INF, -INF], [0, 0, 0]]]
)
def test_no_permitted_permutation(pattern):
    log_matrix = torch.tensor(pattern, requires_grad=True)
    value = log_bethe_permanent(log_matrix)
    value.backward()
    assert value.item() == -INF
    assert_close(log_matrix.grad, torch.zeros_like(log_matrix))


def test_both_domains_agree():
    log_matrix = torch.stack([unit_densities(30, 5, spread) for spread in (0.1, 0.5, 3.0)])
    scaled = log_matrix - log_matrix.amax(-1, keepdim=True)
    linear = propagation._sweep(propagation._LINEAR, scaled.exp(), 500, 1e-10)
    logarithmic = propagation._sweep(propagation._LOGARITHMIC, scaled, 500, 1e-10)
    assert linear.faithful.all()
    assert_close(linear.log_permanent, logarithmic.log_permanent, atol=1e-10, rtol=0)
    assert_close(linear.marginals, logarithmic.marginals, atol=1e-9, rtol=0)


def test_single_precision_agrees_with_double_also_where_its_exponentials_underflow():
    batch = torch.stack([gaussian(40, 40, scale=scale) for scale in (1.0, 10.0, 100.0, 300.0)])
    single = propagation.propagate(batch.float(), 500, 1e-5)
    double = propagation.propagate(batch.float().double(), 500, 1e-9)
    scaled = batch - batch.amax(-1, keepdim=True)
    first = propagation._sweep(propagation._SINGLE, scaled.float().exp(), 500, 1e-5)
    assert first.faithful.any() and not first.faithful.all()
    assert single.marginals.dtype == torch.float32
    assert_close(single.log_permanent, double.log_permanent, atol=1e-4, rtol=0)
    assert_close(single.marginals.double(), double.marginals, atol=1e-4, rtol=0)


def test_single_precision_does_not_add_up_what_it_rounds():
    log_matrix = torch.zeros(1, 1999, 1999)  # Every complement is rounded alike.
    single = propagation.propagate(log_matrix, 50, 1e-5)
    double = propagation.propagate(log_matrix.double(), 50, 1e-5)
    assert_close(single.log_permanent, double.log_permanent, atol=0.005, rtol=0)


def test_batch_mixes_domains():
    batch = torch.stack([gaussian(8, 8), gaussian(8, 8, scale=1e4), torch.zeros(8, 8).double()])
    result = bethe_permanent(batch.view(3, 1, 8, 8))
    assert result.log_permanent.shape == result.converged.shape == (3, 1)
    for matrix, value in zip(batch, result.log_permanent[:, 0], strict=True):
        assert_close(value, log_bethe_permanent(matrix), atol=1e-6, rtol=0)


def test_a_thousand_units():
    result = bethe_permanent(unit_densities(1000, 10, 0.5))
    assert result.converged
    assert_close(result.marginals.sum(-2), torch.ones(1000, dtype=torch.double), atol=1e-4, rtol=0)


def test_unconverged_runs_say_so():
    log_matrix = unit_densities(50, 3, 1.0)
    early, late = bethe_permanent(log_matrix, max_iterations=2), bethe_permanent(log_matrix)
    assert not early.converged and early.num_iterations == 2
    assert late.converged and late.residual <= 1e-6 < early.residual


def test_not_a_number_is_not_hidden():
    result = bethe_permanent(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]))
    assert result.log_permanent.isnan() and not result.converged


def test_single_precision_is_summed_in_double():
    log_matrix = unit_densities(40, 10, 0.5).float()
    value = log_bethe_permanent(log_matrix)
    assert value.dtype == torch.float32
    assert value == log_bethe_permanent(log_matrix.double()).float()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_traced_function_generalizes(scale):
    traced = torch.jit.trace(lambda x: log_bethe_permanent(x).sum(), (gaussian(5, 5),))
    log_matrix = gaussian(4, 7, 7, scale=scale, seed=3).requires_grad_()
    value = traced(log_matrix)
    value.backward()
    result = bethe_permanent(log_matrix)
    assert_close(value, result.log_permanent.sum())
    assert_close(log_matrix.grad, result.marginals)


@pytest.mark.parametrize(
    ("log_matrix", "max_iterations", "message"),
    [
        (torch.zeros(3, 4), 10, "shape"),
        (torch.zeros(3, 3, dtype=torch.long), 10, "floating"),
        (torch.zeros(3, 3), 0, "max_iterations"),
    ],
)
def test_wrong_arguments(log_matrix, max_iterations, message):
    with pytest.raises(ValueError, match=message):
        bethe_permanent(log_matrix, max_iterations=max_iterations)
