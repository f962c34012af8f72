"""Scores of predictions, each an average over observations unless it says otherwise.

They are written out because what has them all (torchmetrics) would be a large dependency for a few
lines. The log predictive density is that of :class:`~pyro_perm.Prediction`.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of a row's sum, down to half precision.
_ROUNDING = 1e-2


def rmse(mean: Tensor, y: Tensor) -> float:
    """Root mean squared error of predictive means, both of shape ``(N, ...)``."""
    _require_same_shape("mean", mean, y)
    return (mean - y).square().mean().sqrt().item()


def interval_coverage(draws: Tensor, y: Tensor, level: float = 0.9) -> float:
    """Share of the observations inside their central predictive interval.

    :param draws: of the predictive distribution, shape ``(S, N, ...)``.
    :param y: observations, shape ``(N, ...)``.
    :param level: nominal coverage, between 0 and 1, which a calibrated prediction attains.
    """
    _require_same_shape("a draw", draws[0], y)
    below = (draws < y).double().mean(0)
    tail = (1 - level) / 2
    return ((below >= tail) & (below <= 1 - tail)).double().mean().item()


def accuracy(probabilities: Tensor, y: Tensor) -> float:
    """Share of the observations in the class of largest probability.

    :param probabilities: predictive probabilities of the classes, shape ``(N, C)``.
    :param y: classes, shape ``(N,)``.
    :raises ValueError: if these are no probabilities, or no classes.
    """
    _require_classes(probabilities, y)
    return (probabilities.argmax(-1) == y).double().mean().item()


def brier_score(probabilities: Tensor, y: Tensor) -> float:
    """Squared distance of the probabilities from the one-hot class (Brier 1950), at most 2.

    Shapes as in :func:`accuracy`.
    """
    _require_classes(probabilities, y)
    one_hot = torch.nn.functional.one_hot(y.long(), probabilities.shape[-1])
    return (probabilities - one_hot).square().sum(-1).mean().item()


def expected_calibration_error(probabilities: Tensor, y: Tensor, num_bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence (Guo et al. 2017).

    Shapes as in :func:`accuracy`.

    :param num_bins: number of bins ``((k - 1) / num_bins, k / num_bins]``.
    """
    _require_classes(probabilities, y)
    confidence, predicted = probabilities.double().max(-1)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64, device=y.device)
    bins = torch.bucketize(confidence, edges[1:-1])
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=y.device)
    gaps.index_add_(0, bins, (predicted == y).double() - confidence)
    return gaps.abs().sum().item() / len(y)


def _require_same_shape(what: str, value: Tensor, y: Tensor) -> None:
    if value.shape != y.shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, but y has {tuple(y.shape)}")


def _require_classes(probabilities: Tensor, y: Tensor) -> None:
    if probabilities.dim() != 2 or probabilities.shape[:1] != y.shape:
        raise ValueError(
            f"expected probabilities of shape (N, C) and classes of shape (N,), but got "
            f"{tuple(probabilities.shape)} and {tuple(y.shape)}; for two classes with one "
            "probability p stack them as torch.stack([1 - p, p], -1)"
        )
    sums = probabilities.double().sum(-1)
    if not ((sums - 1).abs() < _ROUNDING).all() or not (probabilities >= 0).all():
        raise ValueError(
            "the rows of probabilities are none: they must be at least 0, and add up to 1. For "
            "logits call softmax(-1); for the means of a regression use rmse or interval_coverage"
        )
    num_classes = probabilities.shape[-1]
    if not ((y == y.long()) & (y >= 0) & (y < num_classes)).all():
        raise ValueError(
            f"y must be classes from 0 to {num_classes - 1}, one for each column of probabilities, "
            f"but is between {y.min().item():.4g} and {y.max().item():.4g}"
        )
