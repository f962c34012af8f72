"""Tables, paired differences and verdicts, of which the page of results is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from results_store import Mean
from scipy.stats import t as student_t

Record = dict[str, Any]
MEAN_FIELD, BOTH = "mean field", "permutations and scales"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_method(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """Method -> seed -> record."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        found.setdefault(record["method"], {})[record["seed"]] = record
    return found


def paired(
    ours: dict[int, Record], theirs: dict[int, Record], score: Callable[[Record], float]
) -> Mean | None:
    """Difference over the seeds that both have."""
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    return Mean.of([score(ours[seed]) - score(theirs[seed]) for seed in common])


def verdict(difference: Mean, *, larger_is_better: bool = True) -> str:
    """What two standard errors say, or Student's t at .95 where runs are few."""
    if difference.num < 2:
        return "ties"
    enough = max(2.0, float(student_t.ppf(0.975, difference.num - 1)))
    if abs(difference.mean) <= enough * difference.error:
        return "ties"
    return "wins" if (difference.mean > 0) is larger_is_better else "loses"


def log_likelihood(record: Record) -> float:
    """Of a run, on test rows."""
    return float(record["scores"]["log_likelihood"])


def gains(
    runs: dict[str, dict[int, Record]],
    method: str,
    others: Sequence[str],
    bound: Callable[[Record], float],
) -> str:
    """In a sentence, what a method gains over others on the same seeds."""
    said = []
    for other in others:
        if method in runs and other in runs:
            nats = paired(runs[method], runs[other], bound)
            point = paired(runs[method], runs[other], log_likelihood)
            if nats is not None and point is not None and nats.num > 1:
                said.append(
                    f"over {other} {nats.text(1)} nats of the bound ({verdict(nats)}) and "
                    f"{point.text(3)} nats a test point ({verdict(point)})"
                )
    return f"Paired, **{method}** gains {'; '.join(said)}." if said else ""
