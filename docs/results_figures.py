"""Figures of the page of results."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from results_store import Mean, Store
from results_tables import BOTH, MEAN_FIELD, by_method


def draw_pruning(store: Store, path: Path) -> None:
    """Active units against the number of points, one panel for each width."""
    records = store.records("pruning")
    widths = sorted({record["scores"]["width"] for record in records})
    if not widths:
        return
    plt.rcParams["font.size"] = 12
    size = (2.4 * len(widths), 3.2)
    figure, panels = plt.subplots(
        1, len(widths), figsize=size, sharey=True, layout="constrained", squeeze=False
    )
    for width, panel in zip(widths, panels[0], strict=True):
        some = [record for record in records if record["scores"]["width"] == width]
        rows = sorted({record["scores"]["rows"] for record in some})
        runs = by_cell(some)
        for method, marker in ((MEAN_FIELD, "o"), ("permutations", "s"), (BOTH, "^")):
            points = [(num, Mean.of(runs[num, method])) for num in rows if (num, method) in runs]
            panel.errorbar(
                [num for num, _ in points],
                [mean.mean for _, mean in points],
                [mean.error for _, mean in points],
                marker=marker,
                label=method,
            )
        panel.set(xscale="log", xlabel="points", title=f"{width} units")
        panel.set_xticks(rows, [str(num) for num in rows])
        panel.minorticks_off()
    panels[0][0].set_ylabel("active units")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def by_cell(records: list[dict]) -> dict[tuple[int, str], list[float]]:
    """Number of points and method -> active units of each seed."""
    return {
        (num, method): [record["scores"]["active_units"] for record in runs.values()]
        for num in {record["scores"]["rows"] for record in records}
        for method, runs in by_method(
            [record for record in records if record["scores"]["rows"] == num]
        ).items()
    }
