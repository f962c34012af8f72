"""The table of ``benchmarks/recipes.py``, made of its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results_store import Mean

BENCHMARK = "recipes"


def convergence(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A header, and a row a recipe: bound and test log-likelihood after each number of steps.

    Means over seeds with their standard errors; the bound of a single seed has that of its draws.

    :param records: of one data set, in any order.
    """
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in records:
        settings = record["settings"]
        cells.setdefault((settings["recipe"], settings["steps"]), []).append(record["scores"])
    recipes = sorted({recipe for recipe, _ in cells}, key=lambda name: _last_bound(cells, name))
    all_steps = sorted({steps for _, steps in cells})
    header = ["recipe", *(f"{steps:,} steps" for steps in all_steps)]
    rows = [[name, *(_cell(cells.get((name, n), [])) for n in all_steps)] for name in recipes]
    return [header, *rows]


def _cell(scores: Sequence[dict[str, Any]]) -> str:
    if not scores:
        return ""
    bound = Mean.of([each["bound"] for each in scores])
    if len(scores) == 1:
        bound = bound._replace(error=scores[0]["error"])
    return f"{bound.text(1)}, {Mean.of([s['log_likelihood'] for s in scores]).text(3)}"


def _last_bound(cells: dict[tuple[str, int], list[dict[str, Any]]], recipe: str) -> float:
    """Of the longest training, for the order of rows."""
    last = max(steps for name, steps in cells if name == recipe)
    return Mean.of([scores["bound"] for scores in cells[recipe, last]]).mean
