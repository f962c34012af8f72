import gc
import math

import pytest
import torch
from enumeration import enumerated_log_permanent, enumerated_marginals, log_matrices
from hypothesis import given, settings
from marks import examples, slow
from torch.testing import assert_close

from pyro_perm.permanent import log_permanent, permutation_marginals

INF = math.inf
properties = settings(max_examples=examples(40))


def gaussian(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.double, generator=generator)


@properties
@given(log_matrices(7, scales=(0.1, 1.0, 30.0, 1e4)))
def test_agrees_with_enumeration(log_matrix):
    assert_close(log_permanent(log_matrix), enumerated_log_permanent(log_matrix))
    assert_close(permutation_marginals(log_matrix), enumerated_marginals(log_matrix))


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 9, 14])
def test_agrees_with_the_walrus(size):
    import thewalrus  # It takes seconds, and compiles.

    log_matrix = gaussian(size, size)
    expected = math.log(thewalrus.perm(log_matrix.exp().numpy()))
    assert log_permanent(log_matrix).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 13, *slow(20)])
def test_counts_the_permutations_of_equal_weights(size):
    log_matrix = torch.zeros(size, size, dtype=torch.double)
    assert log_permanent(log_matrix).item() == pytest.approx(math.lgamma(size + 1), abs=1e-12)


@pytest.mark.slow
def test_a_large_permanent_leaves_no_memory_behind():
    def held():
        # Asking some classes' instances for theirs warns.
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
        return sum(x.untyped_storage().nbytes() for x in tensors)

    before = held()
    for size in (17, 18):
        permutation_marginals(torch.zeros(size, size))
    gc.collect()
    assert held() - before < 1_000_000


def test_uniform_permutations_have_uniform_marginals():
    marginals = permutation_marginals(torch.zeros(16, 16, dtype=torch.double))
    assert_close(marginals, torch.full_like(marginals, 1 / 16))


@properties
@given(log_matrices(8, scales=(1.0, 10.0)))
def test_symmetries(log_matrix):
    size = log_matrix.shape[-1]
    value, order = log_permanent(log_matrix), torch.randperm(size)
    rows, columns = gaussian(size, scale=50.0, seed=1), gaussian(size, scale=50.0, seed=2)
    assert_close(log_permanent(log_matrix.mT), value)
    assert_close(log_permanent(log_matrix[order]), value)
    assert_close(log_permanent(log_matrix[:, order]), value)
    scaled = log_matrix + rows[:, None] + columns
    assert_close(log_permanent(scaled), value + rows.sum() + columns.sum())
    assert_close(permutation_marginals(scaled), permutation_marginals(log_matrix))


def test_blocks_multiply():
    first, second = gaussian(3, 3), gaussian(4, 4, seed=1)
    joint = torch.full((7, 7), -INF, dtype=torch.double)
    joint[:3, :3], joint[3:, 3:] = first, second
    assert_close(log_permanent(joint), log_permanent(first) + log_permanent(second))
    assert_close(
        permutation_marginals(joint),
        torch.block_diag(permutation_marginals(first), permutation_marginals(second)),
    )


def test_marginals_are_doubly_stochastic():
    marginals = permutation_marginals(gaussian(3, 12, 12, scale=5.0))
    assert_close(marginals.sum(-1), torch.ones(3, 12, dtype=torch.double))
    assert_close(marginals.sum(-2), torch.ones(3, 12, dtype=torch.double))


def test_batch_dimensions_are_independent():
    batch = gaussian(2, 3, 5, 5)
    assert log_permanent(batch).shape == (2, 3)
    assert_close(log_permanent(batch)[1, 2], log_permanent(batch[1, 2]))
    assert_close(permutation_marginals(batch)[1, 2], permutation_marginals(batch[1, 2]))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_gradient_is_the_derivative(size):
    log_matrix = gaussian(2, size, size, scale=2.0).requires_grad_()
    assert torch.autograd.gradcheck(log_permanent, log_matrix)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_second_derivatives_are_those_of_the_gradient(size):
    log_matrix = gaussian(2, size, size, scale=2.0).requires_grad_()
    assert torch.autograd.gradgradcheck(log_permanent, log_matrix)


def test_second_derivatives_at_forbidden_pairs_are_refused():
    log_matrix = gaussian(3, 3).index_fill(0, torch.tensor(1), -INF).requires_grad_()
    with pytest.raises(ValueError, match="second derivatives only where no entry is -inf"):
        torch.autograd.grad(log_permanent(log_matrix), log_matrix, create_graph=True)


def test_nothing_underflows():
    log_matrix = torch.tensor([[0.0, -1000.0], [0.0, -1000.0]])
    assert log_permanent(log_matrix).item() == pytest.approx(math.log(2) - 1000)
    assert_close(permutation_marginals(log_matrix), torch.full((2, 2), 0.5))


def test_forbidden_pairs():
    log_matrix = torch.tensor([[1.0, -INF, -INF], [2.0, 3.0, 4.0], [5.0, 6.0, -INF]])
    log_matrix.requires_grad_()
    value = log_permanent(log_matrix)
    value.backward()
    assert value.item() == pytest.approx(1.0 + 4.0 + 6.0)
    assert_close(log_matrix.grad, torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]))


@pytest.mark.parametrize(
    "pattern", [[[-INF]], [[-INF, 0.0], [-INF, 0.0]], [[0, -INF, -INF], [0, -INF, -INF], [0, 0, 0]]]
)
def test_no_permitted_permutation(pattern):
    log_matrix = torch.tensor(pattern, requires_grad=True)
    value = log_permanent(log_matrix)
    value.backward()
    assert value.item() == -INF
    assert_close(log_matrix.grad, torch.zeros_like(log_matrix))


def test_single_precision_is_summed_in_double():
    log_matrix = gaussian(6, 6, scale=3.0).float()
    value = log_permanent(log_matrix)
    assert value.dtype == torch.float32
    assert value == log_permanent(log_matrix.double()).float()
    assert permutation_marginals(log_matrix).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_traced_function_generalizes():
    traced = torch.jit.trace(lambda x: log_permanent(x).sum(), (gaussian(5, 5),))
    log_matrix = gaussian(4, 7, 7, seed=3).requires_grad_()
    value = traced(log_matrix)
    value.backward()
    assert_close(value, log_permanent(log_matrix).sum())
    assert_close(log_matrix.grad, permutation_marginals(log_matrix))


@pytest.mark.parametrize(
    ("log_matrix", "message"),
    [
        (torch.zeros(3, 4), "shape"),
        (torch.zeros(3), "shape"),
        (torch.zeros(3, 3, dtype=torch.long), "floating"),
        (torch.zeros(21, 21), "limited to 20"),
    ],
)
@pytest.mark.parametrize("function", [log_permanent, permutation_marginals])
def test_wrong_arguments(function, log_matrix, message):
    with pytest.raises(ValueError, match=message):
        function(log_matrix)
