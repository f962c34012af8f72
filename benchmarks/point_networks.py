"""Peers on the same networks: a deep ensemble, MC dropout, and Laplace's approximation.

All three train point estimates: maximum a posteriori under the prior of :mod:`stacked_network`,
noise learned with the weights, Adam with the settings of the variational methods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch
from regression_data import Stack
from stacked_network import Layout, log_normal, outputs
from stacked_training import Adam, learning_share
from torch import Tensor, nn


def train_points(
    layout: Layout,
    data: Stack,
    *,
    seeds: list[int],
    prior_scale: Tensor,
    learning_rate: Tensor,
    num_steps: int,
    dropout: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Networks of highest posterior density, and the seconds that they took.

    :param dropout: rates at which hidden units are dropped in training, shape ``(runs,)``.
    :returns: shape ``(runs, size)``.
    """
    begin = time.perf_counter()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    torch.manual_seed(seeds[0])
    weights = torch.stack([layout.initial(source) for source in generators]).requires_grad_()
    scale, loc = layout.prior_scale(prior_scale), layout.prior_loc()
    adam = Adam([weights], learning_rate.unsqueeze(-1))
    for step in range(num_steps):
        keep = None if dropout is None else _kept(layout, data.x, dropout)
        mean = outputs(layout, weights, data.x, keep)
        fit = log_normal(data.y, mean, weights[..., -1:]).sum()
        (0.5 * ((weights - loc) / scale).square().sum() - fit).backward()
        adam.step(learning_share(step, num_steps))
    return weights.detach(), time.perf_counter() - begin


def ensemble_predictions(
    layout: Layout, data: Stack, members: Tensor
) -> Iterable[tuple[Tensor, Tensor]]:
    """One a member.

    :param members: shape ``(members, runs, size)``.
    """
    for weights in members:
        yield outputs(layout, weights, data.test_x), weights[..., -1:]


def dropout_predictions(
    layout: Layout, data: Stack, weights: Tensor, dropout: Tensor, num_draws: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """One a set of dropped units; every row has its own, as in Gal & Ghahramani 2016."""
    for _ in range(num_draws):
        keep = _kept(layout, data.test_x, dropout)
        yield outputs(layout, weights, data.test_x, keep), weights[..., -1:]


def laplace_prediction(
    layout: Layout, data: Stack, weights: Tensor, run: int
) -> tuple[Tensor, Tensor]:
    """Linearized predictive of laplace-torch with the full Gauss-Newton matrix.

    Prior precision and noise maximize its marginal likelihood, starting from the network's. In
    double precision: in single, the matrix need not be positive definite.

    :returns: mean and logarithm of the standard deviation, shape ``(1, rows)``.
    """
    from laplace import Laplace

    model = nn.Sequential(
        nn.Linear(layout.inputs, layout.num_units), nn.ReLU(), nn.Linear(layout.num_units, 1)
    )
    model.double()
    incoming, bias, outgoing = layout.parts(weights[run])
    with torch.no_grad():
        model[0].weight.copy_(incoming)
        model[0].bias.copy_(bias.squeeze(-1))
        model[2].weight.copy_(outgoing.mT)
        model[2].bias.copy_(weights[run, -2:-1])
    targets = data.y[run].unsqueeze(-1).double()
    rows = torch.utils.data.TensorDataset(data.x[run].double(), targets)
    loader = torch.utils.data.DataLoader(rows, batch_size=len(rows))
    noise = float(weights[run, -1].exp())
    laplace = Laplace(
        model,
        "regression",
        subset_of_weights="all",
        hessian_structure="full",
        sigma_noise=noise,
        prior_precision=1.0,
    )
    laplace.fit(loader)
    log_prior, log_noise = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.0, math.log(noise))
    )
    optimizer = torch.optim.Adam([log_prior, log_noise], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss = -laplace.log_marginal_likelihood(log_prior.exp(), log_noise.exp())
        loss.backward()
        optimizer.step()
    mean, variance = laplace(data.test_x[run].double())
    deviation = (variance.squeeze(-1) + laplace.sigma_noise.square()).sqrt()
    return mean.detach().mT.float(), deviation.detach().log().mT.float()


def _kept(layout: Layout, x: Tensor, dropout: Tensor) -> Tensor:
    """By what hidden units are multiplied: zero, or what keeps their mean."""
    rate = dropout[:, None, None]
    shape = (*x.shape[:-1], layout.num_units)
    return (torch.rand(shape) >= rate).float() / (1 - rate)
