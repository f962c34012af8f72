"""Metrics against scikit-learn, against loops, and at their limits."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, root_mean_squared_error

from pyro_perm import metrics


def classes(num=200, num_classes=4):
    probabilities = torch.randn(num, num_classes).mul(2).softmax(-1)
    return probabilities, torch.randint(num_classes, (num,))


def test_rmse_and_accuracy_are_those_of_scikit_learn():
    mean, y = torch.randn(2, 50)
    assert metrics.rmse(mean, y) == pytest.approx(root_mean_squared_error(y, mean))
    probabilities, labels = classes()
    expected = accuracy_score(labels, probabilities.argmax(-1))
    assert metrics.accuracy(probabilities, labels) == pytest.approx(expected)


def test_brier_score_of_certain_uniform_and_wrong_predictions():
    y = torch.tensor([0, 1, 2])
    right = torch.eye(3)
    assert metrics.brier_score(right, y) == 0.0
    assert metrics.brier_score(right.roll(1, 0), y) == 2.0
    assert metrics.brier_score(torch.full((3, 3), 1 / 3), y) == pytest.approx(2 / 3)


def test_calibration_error_is_a_weighted_mean_over_bins():
    probabilities, y = classes()
    confidence, predicted = probabilities.max(-1)
    expected = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            gap = (predicted == y)[inside].double().mean() - confidence[inside].mean()
            expected += inside.double().mean() * gap.abs()
    found = metrics.expected_calibration_error(probabilities, y)
    assert found == pytest.approx(float(expected))


def test_calibrated_predictions_have_no_calibration_error():
    probabilities = torch.tensor([[0.75, 0.25]]).expand(8, 2)
    y = torch.tensor([0, 0, 0, 1] * 2)
    assert metrics.expected_calibration_error(probabilities, y) == pytest.approx(0.0)
    assert metrics.expected_calibration_error(torch.eye(2), torch.tensor([1, 0])) == 1.0


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_calibrated_intervals_cover_their_level(level):
    draws, y = torch.randn(500, 4000), torch.randn(4000)
    error = math.sqrt(level * (1 - level) / 4000)
    assert abs(metrics.interval_coverage(draws, y, level) - level) < 4 * error + 0.01
    assert metrics.interval_coverage(draws, y + 100.0, level) == 0.0


@pytest.mark.parametrize(
    ("probabilities", "y", "message"),
    [
        (torch.randn(3, 1), torch.randn(3), "for the means of a regression use rmse"),
        (torch.randn(3, 4), torch.tensor([0, 1, 2]), r"For logits call softmax\(-1\)"),
        (torch.tensor([[1.5, -0.5]]), torch.tensor([0]), "at least 0, and add up to 1"),
        (torch.full((1, 2), math.nan), torch.tensor([0]), "at least 0, and add up to 1"),
        (torch.ones(2, 1), torch.tensor([0.5, -2.0]), "classes from 0 to 0, .* -2 and 0.5"),
        (torch.eye(2), torch.tensor([0, 2]), "classes from 0 to 1, .* between 0 and 2"),
        (torch.eye(2), torch.tensor([0, -1]), "classes from 0 to 1, .* between -1 and 0"),
    ],
)
@pytest.mark.parametrize(
    "metric", [metrics.accuracy, metrics.brier_score, metrics.expected_calibration_error]
)
def test_what_is_no_classification_is_refused(metric, probabilities, y, message):
    with pytest.raises(ValueError, match=message):
        metric(probabilities, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_probabilities_of_low_precision_and_classes_of_any_type_are_taken(dtype):
    probabilities, y = classes(num_classes=300)
    for labels in (y, y.double(), y.int()):
        assert 0 <= metrics.accuracy(probabilities.to(dtype), labels) <= 1


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"mean has shape \(3, 1\), but y has \(3,\)"):
        metrics.rmse(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="a draw has shape"):
        metrics.interval_coverage(torch.zeros(5, 3, 1), torch.zeros(3))
    for metric in (metrics.accuracy, metrics.brier_score, metrics.expected_calibration_error):
        with pytest.raises(ValueError, match=r"stack them as torch.stack\(\[1 - p, p\], -1\)"):
            metric(torch.rand(3), torch.zeros(3))
