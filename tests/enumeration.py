"""Sums over all permutations, one by one: the ground truth of these tests."""

import functools
from itertools import permutations

import torch
from hypothesis import strategies as st
from torch import Tensor


@functools.cache
def all_permutations(size: int) -> Tensor:
    return torch.tensor(list(permutations(range(size))), dtype=torch.long)


def log_weights_of(log_matrix: Tensor) -> Tensor:
    """Log weight of every permutation, shape (..., n!), for matrices (..., n, n)."""
    size = log_matrix.shape[-1]
    return log_matrix[..., torch.arange(size), all_permutations(size)].sum(-1)


def enumerated_log_permanent(log_matrix: Tensor) -> Tensor:
    return log_weights_of(log_matrix).logsumexp(-1)


def enumerated_marginals(log_matrix: Tensor) -> Tensor:
    size = log_matrix.shape[-1]
    probabilities = log_weights_of(log_matrix).softmax(-1)
    onto = torch.nn.functional.one_hot(all_permutations(size), size).double()
    return torch.einsum("...g,gij->...ij", probabilities, onto)


def log_matrices(max_size: int, scales: tuple[float, ...]) -> st.SearchStrategy[Tensor]:
    """Gaussian log weights of every size up to ``max_size`` and of the given scales."""

    def draw(size: int, scale: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(size, size, dtype=torch.double, generator=generator)

    return st.builds(draw, st.integers(1, max_size), st.sampled_from(scales), st.integers(0, 2**31))
