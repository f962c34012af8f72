"""The sections on scales: the shipped sets, and networks of several layers."""

from __future__ import annotations

from results_store import Mean, Store
from results_tables import MEAN_FIELD, Record, by_method, gains, table


def rescaling(store: Store) -> str:
    """Permutations, scales and both on the shipped sets."""
    header = ["trained by", "seeds", "bound of both", "log-likelihood", "error", "active"]
    parts = []
    for data, runs in _runs_of(store, "rescaling").items():
        rows = [
            [
                method,
                str(len(runs[method])),
                *_means(runs[method], lower=1, log_likelihood=3, error=3, active=1),
            ]
            for method in (MEAN_FIELD, "permutations", "scales", "both")
            if method in runs
        ]
        parts.append(f"### {data}\n\n{table(header, rows)}\n\n{_gain_of_both(runs)}".rstrip())
    return "\n\n".join([RESCALING_INTRODUCTION, *parts]) if parts else ""


RESCALING_INTRODUCTION = """## Permutations and scales

`OMP_NUM_THREADS=1 python benchmarks/rescaling.py --seeds 3 --steps 3000 --samples 100`. One hidden
layer of ReLU units on sets that come with scikit-learn, priors `N(0, 1 / fan_in)` on weights, from
the same starts. The bound is the certified one of the guide that permutes and rescales, whatever
the factors were trained by; errors are RMSE in target deviations, or percent."""


def coupled_scales(store: Store) -> str:
    """All layers against those that share no tensor."""
    header = ["trained by", "seeds", "bound of the subset", "bound of all layers", "log-likelihood"]
    parts = []
    for data, runs in _runs_of(store, "coupled_scales").items():
        rows = []
        for method in (MEAN_FIELD, "exact subset", "all layers, Laplace"):
            if method in runs:
                scores = [_scores(runs[method], name) for name in ("subset", "all layers")]
                rows.append(
                    [
                        method,
                        str(len(runs[method])),
                        *(Mean.of(each).text(1) for each in scores),
                        *_means(runs[method], log_likelihood=3),
                    ]
                )
        parts.append(f"### {data}, scales of several layers\n\n{table(header, rows)}")
        parts.append(_gain_of_all_layers(runs))
    return "\n\n".join(filter(None, [COUPLED_INTRODUCTION, *parts])) if parts else ""


COUPLED_INTRODUCTION = """## Scales of several layers

`OMP_NUM_THREADS=1 python benchmarks/coupled_scales.py --data-dir FOLDER --case diabetes-30-30
yacht-20-20-20 --samples 50`. ReLU networks of several layers, without permutations: mean field, the
exact scales of layers that share no tensor, which is what the package rescales, and the scales of
all layers by Laplace's approximation along the orbits. Bounds are on the evidence: exact for the
subset, by importance sampling along the orbits for all layers."""


def _runs_of(store: Store, benchmark: str) -> dict[str, dict[str, dict[int, Record]]]:
    """Data -> method -> seed -> record."""
    records = store.records(benchmark)
    return {
        data: by_method([record for record in records if record["data"] == data])
        for data in dict.fromkeys(record["data"] for record in records)
    }


def _scores(runs: dict[int, Record], name: str) -> list[float]:
    return [record["scores"][name] for record in runs.values()]


def _means(runs: dict[int, Record], **digits: int) -> list[str]:
    return [Mean.of(_scores(runs, name)).text(places) for name, places in digits.items()]


def _gain_of_both(runs: dict[str, dict[int, Record]]) -> str:
    return gains(runs, "both", (MEAN_FIELD, "permutations"), lambda r: float(r["scores"]["lower"]))


def _gain_of_all_layers(runs: dict[str, dict[int, Record]]) -> str:
    others = (MEAN_FIELD, "exact subset")
    return gains(runs, "all layers, Laplace", others, lambda r: float(r["scores"]["all layers"]))
