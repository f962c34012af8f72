r"""Drawing permutations row by row.

Given weights :math:`w_{ij}`, rows are visited in a fixed order :math:`i_1, i_2, \dots`, and
each one draws a column among those that are left,

.. math:: \tau(g) = \prod_t \frac{w_{i_t, g(i_t)}}
          {\sum_{j \notin \{g(i_1), \dots, g(i_{t-1})\}} w_{i_t, j}} .

This is a normalized distribution over permutations whatever the weights, hence a legal
proposal for importance sampling of the permanent. Rows of least entropy come first: they
know their column, and should not find it taken.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_perm.permanent._shapes import check_square

# Added to weights whose largest entry in a row is one: no permutation is impossible, and
# what is left of a row can always be normalized, while smaller weights keep their ratios.
_FLOOR = 1e-250


@torch.no_grad()
def sample_permutations(
    log_weights: Tensor, num_samples: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw permutations from the row-by-row proposal.

    >>> log_weights = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    >>> sample_permutations(log_weights, 1)
    (tensor([[1, 0]]), tensor([-0.0001]))

    :param log_weights: log weights, shape (..., n, n), each row up to a constant.
    :param num_samples: number of permutations drawn for each matrix.
    :param generator: source of randomness; the global one if None.
    :returns: permutations, shape (num_samples, ..., n), whose i-th entry is the column of
        row i, and their log-probabilities in nats, shape (num_samples, ...), without gradient.
    :raises ValueError: if the matrices are not square.
    """
    check_square(log_weights)

    def draw(cumulative: Tensor, step: int) -> Tensor:
        uniform = torch.rand(
            (*cumulative.shape[:-1], 1),
            dtype=cumulative.dtype,
            device=cumulative.device,
            generator=generator,
        )
        # A threshold in (0, total] is first reached at a column of positive weight.
        column: Tensor = torch.searchsorted(cumulative, (1 - uniform) * cumulative[..., -1:])
        return column

    order = _visiting_order(log_weights)
    columns, log_prob = _visit_rows(log_weights, order, torch.Size([num_samples]), draw)
    return torch.empty_like(columns).scatter_(-1, order.expand_as(columns), columns), log_prob


@torch.no_grad()
def permutation_log_prob(log_weights: Tensor, permutations: Tensor) -> Tensor:
    """Log-probability of given permutations under the row-by-row proposal.

    >>> permutation_log_prob(torch.zeros(3, 3), torch.tensor([2, 0, 1])).exp()
    tensor(0.1667)

    :param log_weights: log weights, shape (..., n, n), each row up to a constant.
    :param permutations: permutations of 0..n-1, shape (sample_shape, ..., n), whose i-th entry
        is the column of row i.
    :returns: log-probabilities in nats, shape (sample_shape, ...), without gradient.
    :raises ValueError: if the matrices are not square or the shapes do not match.
    """
    check_square(log_weights)
    batch_dims = log_weights.dim() - 1
    if permutations.shape[permutations.dim() - batch_dims :] != log_weights.shape[:-1]:
        raise ValueError(
            f"permutations of shape {tuple(permutations.shape)} do not end in "
            f"{tuple(log_weights.shape[:-1])}, the shape of one permutation per matrix"
        )
    order = _visiting_order(log_weights)
    columns = permutations.gather(-1, order.expand_as(permutations))
    sample_shape = permutations.shape[: permutations.dim() - batch_dims]
    return _visit_rows(
        log_weights, order, sample_shape, lambda cumulative, step: columns[..., step, None]
    )[1]


def _visiting_order(log_weights: Tensor) -> Tensor:
    """Rows by increasing entropy, a function of the weights alone, shape (..., n)."""
    weights = _normalized_weights(log_weights)
    probabilities = weights / weights.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy.argsort(dim=-1, stable=True)


def _normalized_weights(log_weights: Tensor) -> Tensor:
    log_weights = log_weights.double()
    largest = log_weights.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.double).min)
    return (log_weights - largest).exp() + _FLOOR


def _visit_rows(
    log_weights: Tensor,
    order: Tensor,
    sample_shape: torch.Size,
    choose: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """Let each row choose a column, given the cumulative weights of those that are left.

    :returns: the columns in visiting order, shape (sample_shape, ..., n), and the
        log-probability of having drawn them, shape (sample_shape, ...).
    """
    weights = _normalized_weights(log_weights)
    weights = weights.gather(-2, order[..., None].expand_as(weights))
    free = weights.new_ones(*sample_shape, *weights.shape[:-1])
    log_prob = free.new_zeros(free.shape[:-1])
    columns = torch.empty(free.shape, dtype=torch.long, device=free.device)
    for step in range(weights.shape[-1]):
        remaining = weights[..., step, :] * free
        cumulative = remaining.cumsum(-1)
        column = choose(cumulative, step)
        log_prob += (remaining.gather(-1, column) / cumulative[..., -1:]).log().squeeze(-1)
        free.scatter_(-1, column, 0.0)
        columns[..., step] = column.squeeze(-1)
    return columns, log_prob.to(log_weights.dtype)
