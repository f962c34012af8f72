"""What a trained guide is worth: certified bounds, and predictions on held-out data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro

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
    elbo = pp.symmetrized_elbo(model, guide, train.x, train.y, num_samples=NUM_BOUND_SAMPLES)
    held_out = pp.to_arviz(model, guide, test.x, test.y, num_samples=NUM_DRAWS, num_prior_samples=0)
    return Evaluation(
        elbo,
        _log_likelihood(held_out["log_likelihood"]["y"].values[0]),
        _error(
            held_out["posterior_predictive"]["y"].values[0], test.y.numpy(), dataset.num_classes
        ),
        pp.to_arviz(model, guide, train.x, train.y, num_samples=NUM_DRAWS, elbo=elbo),
    )


def _log_likelihood(pointwise: np.ndarray) -> float:
    """Mean log predictive density, from shape ``(draws, N)``."""
    return float((np.logaddexp.reduce(pointwise, 0) - math.log(len(pointwise))).mean())


def _error(predictions: np.ndarray, y: np.ndarray, num_classes: int | None) -> float:
    """Error of the predictive mean or mode, from shape ``(draws, N)``."""
    if num_classes is None:
        return float(np.sqrt(np.square(predictions.mean(0) - y).mean()))
    votes = [(predictions == label).sum(0) for label in range(num_classes)]
    return float((np.argmax(votes, 0) != y).mean())
