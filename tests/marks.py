"""Parameters of tests that only the full run has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow(*parameters: Any) -> list[Any]:
    """Marked values of what a test is parametrized by: quicker ones state the same fact."""
    return [
        pytest.param(*(each if isinstance(each, tuple) else [each]), marks=pytest.mark.slow)
        for each in parameters
    ]


def slow_where(condition: Callable[[Any], bool], parameters: Iterable[Any]) -> list[Any]:
    """All values, those of them marked for which the condition holds."""
    return [slow(each)[0] if condition(each) else each for each in parameters]
