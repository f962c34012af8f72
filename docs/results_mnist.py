"""The section on the paper's table."""

from __future__ import annotations

from collections.abc import Callable

from results_store import Mean, Store
from results_tables import BOTH, MEAN_FIELD, Record, by_method, paired, table, verdict

Runs = dict[str, dict[int, Record]]


def mnist(store: Store) -> str:
    """The paper's table, and each method against mean field."""
    records = store.records("mnist")
    if not records:
        return ""
    widths = {
        int(data.split()[0]): by_method([r for r in records if r["data"] == data])
        for data in dict.fromkeys(record["data"] for record in records)
    }
    rows = [[str(width), *row] for width, runs in widths.items() for row in _rows(runs)]
    header = ["H", "trained by", "seeds", "accuracy, %", "NLL", "ECE", "bound of both"]
    parts = [INTRODUCTION, table(header, rows)]
    rows = [[str(width), *row] for width, runs in widths.items() for row in _differences(runs)]
    if rows:
        header = ["H", "against mean field", "accuracy, %", "NLL", "bound of both"]
        parts.append(table(header, rows))
    same = [str(width) for width, runs in widths.items() if _end_alike(runs)]
    if same:
        parts.append(
            f"At H = {', '.join(same)} permutations end exactly where mean field does: units of "
            "795 weights each do not overlap, so that I is log H! at every draw, and has no "
            "gradient. Nor can InfoNCE's then differ from mean field by more than its own noise: "
            "the paper's gains are of the size of the errors above."
        )
    return "\n\n".join(parts)


INTRODUCTION = """## The paper's table

`OMP_NUM_THREADS=1 python benchmarks/mnist.py`. Networks 784-H-10 on 5,000 images of MNIST, 4,000 of
them to train on, where the paper has 60,000: its accuracies (88.4, 93.2, 94.8, 95.4 % at H = 5, 10,
20, 30, and .03 to .12 more with InfoNCE, K = 20) are out of reach, its differences are what can be
compared. Differences are paired by seed."""


def _accuracy(record: Record) -> float:
    return float(record["scores"]["accuracy"])


def _nll(record: Record) -> float:
    return float(record["scores"]["nll"])


def _bound(record: Record) -> float:
    return float(record["scores"]["bounds"][BOTH])


def _rows(runs: Runs) -> list[list[str]]:
    rows = []
    for method, found in runs.items():
        records = list(found.values())

        def mean(score: Callable[[Record], float], digits: int, of: list[Record] = records) -> str:
            return Mean.of([score(record) for record in of]).text(digits)

        ece = Mean.of([record["scores"]["ece"] for record in records]).text(4)
        means = [mean(_accuracy, 2), mean(_nll, 4), ece, mean(_bound, 0)]
        rows.append([method, str(len(records)), *means])
    return rows


def _differences(runs: Runs) -> list[list[str]]:
    rows = []
    for method in runs:
        if method == MEAN_FIELD or MEAN_FIELD not in runs:
            continue
        row = [method]
        for score, digits, larger in ((_accuracy, 2, True), (_nll, 4, False), (_bound, 1, True)):
            found = paired(runs[method], runs[MEAN_FIELD], score)
            word = None if found is None else verdict(found, larger_is_better=larger)
            row.append("" if found is None else f"{found.text(digits)}, {word}")
        rows.append(row)
    return rows


def _end_alike(runs: Runs) -> bool:
    """Whether permutations have mean field's scores to the last digit, for all seeds."""
    one, other = runs.get("permutations", {}), runs.get(MEAN_FIELD, {})
    return bool(one) and all(
        seed in other and record["scores"]["bounds"] == other[seed]["scores"]["bounds"]
        for seed, record in one.items()
    )
