"""Scores of trained stacks: held-out predictions in the target's units, certified bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from regression_data import Stack
from stacked_network import Layout, log_likelihood, log_normal, outputs
from stacked_objectives import Posteriors, certified
from stacked_training import Trained, draw_all
from torch import Tensor

# An active unit's share of the output varies over the rows by this much, in target deviations.
_ACTIVE = 0.01
# Draws whose unit pairs fit into memory together.
_DRAWS_AT_ONCE = 10


def predictive_scores(
    data: Stack, predictions: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Of an even mixture of Normals, one component a network drawn.

    :param predictions: means of standardized test targets, shape ``(runs, rows)``, and logarithms
        of the noise, which broadcast to it; one pair a network.
    :returns: ``log_likelihood``, in nats a row, and ``rmse``, both in the target's own units, shape
        ``(runs,)``.
    """
    log_densities, total = [], torch.zeros_like(data.test_y)
    for mean, log_noise in predictions:
        log_densities.append(log_normal(data.test_y, mean, log_noise))
        total += mean
    mixture = torch.stack(log_densities).double().logsumexp(0) - math.log(len(log_densities))
    error = (total / len(log_densities) - data.test_y).square().mean(-1).sqrt()
    return {
        "log_likelihood": mixture.mean(-1) - data.unit.log(),
        "rmse": error * data.unit,
    }


def posterior_predictions(
    layout: Layout, data: Stack, trained: Trained, seeds: list[int], num_draws: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """Those of networks drawn from the factors: symmetrization changes no prediction."""
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    for _ in range(num_draws):
        value = trained.loc + trained.scale * draw_all(generators, layout.size)
        yield outputs(layout, value, data.test_x), value[..., -1:]


@torch.no_grad()
def certified_bounds(
    layout: Layout,
    data: Stack,
    trained: Trained,
    prior_scale: Tensor,
    *,
    num_draws: int,
    num_permutations: int,
) -> dict[str, dict[str, Tensor]]:
    """Bounds of the evidence for each kind of guide with these factors, in nats.

    The four share their draws: differences between them are known better than each.

    :returns: kind -> ``mean`` and ``error``, shape ``(runs,)``.
    """
    torch.manual_seed(0)
    prior = layout.prior_scale(prior_scale)
    draws: dict[str, list[Tensor]] = {}
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        num = min(_DRAWS_AT_ONCE, num_draws - start)
        loc, scale = (part.repeat(num, 1) for part in (trained.loc, trained.scale))
        value = loc + scale * torch.randn_like(loc)
        posteriors = Posteriors(layout, value, loc, scale, prior.repeat(num, 1))
        parts = [
            log_likelihood(layout, some, data.x, data.y).sum(-1).double()
            for some in value.split(len(trained.loc))
        ]
        likelihood = torch.stack(parts)
        for kind, added in certified(posteriors, num_permutations).items():
            draws.setdefault(kind, []).append(likelihood + added.view_as(likelihood))
    return {
        kind: {"mean": (all_ := torch.cat(some)).mean(0), "error": all_.std(0) / num_draws**0.5}
        for kind, some in draws.items()
    }


@torch.no_grad()
def active_units(layout: Layout, data: Stack, trained: Trained) -> Tensor:
    """Number of hidden units whose contribution to the mean function varies, shape ``(runs,)``."""
    incoming, bias, outgoing = layout.parts(trained.loc)
    contribution = torch.relu(torch.baddbmm(bias.mT, data.x, incoming.mT)) * outgoing.mT
    return (contribution.std(1) > _ACTIVE).sum(-1)
