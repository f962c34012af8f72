"""What a trained guide is worth: certified bounds, and predictions on held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
from torch import Tensor
from torch.nn.functional import one_hot

import pyro_perm as pp
from pyro_perm.demo.data import Dataset
from pyro_perm.demo.training import Fit

NUM_DRAWS = 500
NUM_BOUND_SAMPLES = 200


@dataclass(frozen=True)
class Evaluation:
    """Figures of a trained guide.

    Attributes:
        elbo: the certified interval of ``ELBO(q^G)``, with ``ELBO(q)`` and ``I(g; w)``.
        test_log_likelihood: mean over the held-out points, in nats.
        test_error: of the predictive mean or mode: RMSE in standard deviations of the target, or
            the proportion of wrong classes.
        arviz: the posterior, on the training data.
    """

    elbo: pp.SymmetrizedELBO
    test_log_likelihood: float
    test_error: float
    arviz: Any


def evaluate(fit: Fit, dataset: Dataset, seed: int) -> Evaluation:
    """Evaluate a trained guide; the seed fixes the draws."""
    pyro.set_rng_seed(seed)
    model, guide, train, test = fit.model, fit.guide, dataset.train, dataset.test
    # A guide that is not symmetrized does not bring it.
    symmetry = pp.find_symmetry(model, train.x, train.y)
    elbo = pp.symmetrized_elbo(
        model, guide, train.x, train.y, num_samples=NUM_BOUND_SAMPLES, symmetry=symmetry
    )
    held_out = pp.predict(model, guide, test.x, test.y, num_samples=NUM_DRAWS, draws_at_once=1)
    arviz = pp.to_arviz(
        model, guide, train.x, train.y, num_samples=NUM_DRAWS, symmetry=symmetry, elbo=elbo
    )
    return Evaluation(
        elbo,
        held_out.log_predictive_density.mean().item(),
        _error(held_out.draws, test.y, dataset.num_classes),
        arviz,
    )


def _error(draws: Tensor, y: Tensor, num_classes: int | None) -> float:
    """Error of the mean or mode of the predictive draws, shape ``(draws, N)``."""
    if num_classes is None:
        return pp.metrics.rmse(draws.mean(0), y)
    return 1 - pp.metrics.accuracy(one_hot(draws, num_classes).double().mean(0), y)
