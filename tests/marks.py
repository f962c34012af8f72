"""Parameters and examples of tests that only the full run has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import hypothesis
import pytest
from problems import Problem

# Of the small models: one layer, two that share a matrix, with sites of its own, with signs,
# and with scales.
QUICK_PROBLEMS = (
    *("one_hidden_layer", "two_hidden_layers", "local_latents"),
    *("signed_one_hidden_layer", "one_signed_layer_of_two"),
    *("rescaled_one_hidden_layer", "rescaled_in_place"),
)


def examples(number: int) -> int:
    """On how many examples a property is tried: in the quick run a third of those of the full."""
    percent = hypothesis.settings.default.max_examples
    return math.ceil(number * percent / 100)


def slow(*parameters: Any) -> list[Any]:
    """Marked values of what a test is parametrized by: quicker ones state the same fact."""
    return [
        pytest.param(*(each if isinstance(each, tuple) else [each]), marks=pytest.mark.slow)
        for each in parameters
    ]


def slow_where(condition: Callable[[Any], bool], parameters: Iterable[Any]) -> list[Any]:
    """All values, those of them marked for which the condition holds."""
    return [slow(each)[0] if condition(each) else each for each in parameters]


def on_each(problems: Iterable[Problem]) -> pytest.MarkDecorator:
    """A test on each of some problems, on a few of every kind in the quick run."""
    problems = slow_where(lambda problem: problem.name not in QUICK_PROBLEMS, problems)
    return pytest.mark.parametrize("problem", problems, ids=str)
