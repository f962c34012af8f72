"""The sections on everything but regression sets; each is empty where it has no files yet."""

from __future__ import annotations

import math

from recipe_table import convergence
from results_store import Mean, Store
from results_tables import (
    BOTH,
    MEAN_FIELD,
    Record,
    by_method,
    log_likelihood,
    paired,
    table,
    verdict,
)


def information(store: Store) -> str:
    """Estimators of mutual information."""
    records = store.records("information")
    if not records:
        return ""
    parts = [INFORMATION_INTRODUCTION]
    for data in dict.fromkeys(record["data"] for record in records):
        some = [record for record in records if record["data"] == data]
        truth = some[0]["scores"]["reference"]
        rows = [
            [
                record["method"],
                with_error(record["scores"]["bias"], record["scores"]["error"]),
                number(record["scores"]["deviation"]),
                number(record["scores"]["milliseconds"]),
            ]
            for record in sorted(some, key=lambda record: error_of(record["scores"]))
        ]
        header = ["estimator", "bias", "standard deviation", "ms a draw"]
        parts.append(f"### Trained by {data}: I = {truth:.2f}\n\n{table(header, rows)}")
        parts.append(information_conclusion(some))
    return "\n\n".join(parts)


def information_conclusion(records: list[Record]) -> str:
    """How InfoNCE compares with the others, in root mean squared errors."""

    def smallest(*names: str) -> float:
        return min(
            error_of(record["scores"]) for record in records if record["method"].startswith(names)
        )

    paper, uniform = smallest("InfoNCE"), smallest("leave-one-out", "NWJ", "Donsker")
    better = "the best" if paper < uniform else "not the best"
    return (
        f"Of the estimators by uniform permutations InfoNCE is {better}, with an error of "
        f"{paper:.2g} nats against {uniform:.2g} of the next: "
        f"{smallest('importance'):.1g} by importance sampling, "
        f"{smallest('Bethe, corrected'):.1g} by `Bethe`, and {smallest('Bethe permanent'):.2g} by "
        "the Bethe permanent without its correction."
    )


INFORMATION_INTRODUCTION = """## Estimators of mutual information

`OMP_NUM_THREADS=1 python benchmarks/information.py`. `I(g; w)` of factorized posteriors of networks
on diabetes data, by the estimators of the literature with their best critics and by those of the
package, all on the same draws of `w`; the reference is exact at 14 units. Rows are in the order of
their root mean squared error for one draw. A dash is a number beyond the range of double precision:
the exponential of a log-ratio of hundreds of nats."""


def error_of(scores: Record) -> float:
    """Root mean squared error of one draw's estimate, in nats."""
    if scores["bias"] is None:
        return float("inf")
    return float((scores["bias"] ** 2 + scores["deviation"] ** 2) ** 0.5)


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def with_error(value: float | None, error: float | None) -> str:
    """As ``1.23 ± 0.04``: the error to one digit, the value as far."""
    if value is None or error is None:
        return "-"
    if error > 1e4:
        return f"{value:.1e} ± {error:.1e}"
    digits = max(0, -math.floor(math.log10(max(error, 1e-9))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def pac_bayes(store: Store) -> str:
    """Certified risk."""
    records = store.records("pac-bayes")
    if not records:
        return ""
    rows = []
    for data in dict.fromkeys(record["data"] for record in records):
        runs = by_method([record for record in records if record["data"] == data])
        for method in (MEAN_FIELD, "permutations", BOTH):
            if method not in runs:
                continue
            scores = [record["scores"] for record in runs[method].values()]
            rows.append(
                [
                    data.rpartition(" ")[2],
                    method,
                    Mean.of([100 * s["error"] for s in scores]).text(1),
                    Mean.of([100 * s["test error"] for s in scores]).text(1),
                    *(
                        Mean.of([100 * s[f"certified risk, {kind}"] for s in scores]).text(1)
                        for kind in (MEAN_FIELD, "permutations", BOTH)
                    ),
                ]
            )
    header = [
        "KL weight",
        "trained by",
        "training error",
        "test error",
        "certified by q",
        "by permutations",
        "by both",
    ]
    return PAC_BAYES_INTRODUCTION + "\n\n" + table(header, rows)


PAC_BAYES_INTRODUCTION = """## A certified risk

`OMP_NUM_THREADS=1 python benchmarks/pac_bayes.py`. Digits of 8 x 8 pixels, 16 hidden units, a prior
that does not depend on the data. In percent, with probability .95 over the rows and the draw of the
network (Rivasplata et al. 2020, Maurer's constant, the binary KL inverted): a bound on the risk of
the network that was drawn, by the density of the guide itself, and by those of the guide that
permutes, and that permutes and rescales. Each holds for the same network, and densities are exact.
Means over draws and five seeds."""


def pruning(store: Store) -> str:
    """Active units."""
    records = store.records("pruning")
    if not records:
        return ""
    rows = []
    cells = {record["data"]: _width_and_rows(record) for record in records}
    for data in sorted(cells, key=cells.__getitem__):
        runs = by_method([record for record in records if record["data"] == data])
        row = [data]
        for method in (MEAN_FIELD, "permutations", BOTH):
            scores = [record["scores"] for record in runs.get(method, {}).values()]
            row.append(Mean.of([s["active_units"] for s in scores]).text(1) if scores else "")
        for method in ("permutations", BOTH):
            pairs = runs.get(method, {}), runs.get(MEAN_FIELD, {})
            gain = paired(*pairs, log_likelihood)
            row.append(f"{gain.text(3)}, {verdict(gain)}" if gain else "")
        rows.append(row)
    header = ["network", MEAN_FIELD, "permutations", BOTH, "held-out gain", "of both"]
    return "\n\n".join([PRUNING_INTRODUCTION, PRUNING_FIGURE, table(header, rows)])


def _width_and_rows(record: Record) -> tuple[int, int]:
    return record["scores"]["width"], record["scores"]["rows"]


PRUNING_FIGURE = (
    "![Active units against the number of points, for three widths and three methods]"
    "(figures/pruning.png)"
)
PRUNING_INTRODUCTION = """## Active units

`OMP_NUM_THREADS=1 python benchmarks/pruning.py`. A noisy wave of five periods, three seeds: how
many hidden units each method keeps in use, and by how much permutations, and permutations with
scales, raise mean field's held-out log-likelihood, in nats a point, paired by seed."""


def cold_posterior(store: Store) -> str:
    """Weights of the KL."""
    records = store.records("cold-posterior")
    if not records:
        return ""
    parts = [COLD_INTRODUCTION]
    for data in dict.fromkeys(record["data"] for record in records):
        runs = by_method([record for record in records if record["data"] == data])
        runs |= {
            method: found
            for method, found in by_method(
                [record for record in store.records("uci") if record["data"] == data]
            ).items()
            if method in (MEAN_FIELD, "permutations", BOTH)
        }
        rows = []
        for method, found in runs.items():
            gain = paired(found, runs[MEAN_FIELD], log_likelihood) if MEAN_FIELD in runs else None
            rows.append(
                [
                    method if "weight" in method else f"{method}, weight 1",
                    str(len(found)),
                    Mean.of([log_likelihood(record) for record in found.values()]).text(3),
                    "" if gain is None or method == MEAN_FIELD else gain.text(3),
                ]
            )
        header = ["trained by", "splits", "log-likelihood", "paired gain over mean field"]
        parts.append(f"### {data}, cold\n\n{table(header, rows)}")
    return "\n\n".join(parts)


COLD_INTRODUCTION = """## Cold posteriors

`OMP_NUM_THREADS=1 python benchmarks/cold_posterior.py --data-dir FOLDER`. Mean field with less than
the whole divergence from the prior, beside the methods above, on the same splits."""


def recipes(store: Store) -> str:
    """Training recipes."""
    records = store.records("recipes")
    if not records:
        return ""
    parts = [RECIPES_INTRODUCTION]
    for data in dict.fromkeys(record["data"] for record in records):
        some = [record for record in records if record["data"] == data]
        num_seeds = len({record["seed"] for record in some})
        header, *rows = convergence(some)
        seeds = "one seed" if num_seeds == 1 else f"{num_seeds} seeds"
        parts.append(f"### {data}, recipes, {seeds}\n\n{table(header, rows)}")
    return "\n\n".join(parts)


RECIPES_INTRODUCTION = """## Training recipes

`OMP_NUM_THREADS=1 python benchmarks/recipes.py`. How fast each recipe of the
[page on training](training.md) converges: a network of 50 ReLU units, minibatches of 64, Adam at a
constant .005, the same initial values for all but the pretrained. Each cell has the certified lower
bound of the evidence, with weight one, and the test log-likelihood, after so many steps; rows are
in the order of the last bound. The error of a bound is that of its draws where there is one seed.
*Last layer* has other priors, and its bound is that of another model; so has *learned prior
scales*, whose bound is of the prior it ends with."""
