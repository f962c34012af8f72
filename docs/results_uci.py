"""The section on regression sets."""

from __future__ import annotations

from collections.abc import Sequence

from results_store import Mean, Store
from results_tables import (
    BOTH,
    MEAN_FIELD,
    Record,
    by_method,
    gains,
    log_likelihood,
    paired,
    table,
    verdict,
)

PEERS = ("deep ensemble", "MC dropout", "Laplace")
UCI_METHODS = (MEAN_FIELD, "InfoNCE (K = 32)", "permutations", "scales", BOTH, *PEERS)
NUM_TRAINING_ROWS = {"yacht": 277, "energy": 691, "concrete": 927, "wine-red": 1439}
# Nats in the last tenth of the steps.
_AT_REST = 2.0
# Log-likelihood and RMSE on the same 20 splits: means that others published.
UCI_PUBLISHED = {
    "MC dropout, Gal & Ghahramani 2016": {
        "concrete": (-2.94, 4.83),
        "energy": (-1.21, 0.54),
        "wine-red": (-0.93, 0.62),
        "yacht": (-1.25, 0.67),
    },
    "mean field in Pyro, a public repository": {
        "concrete": (-3.29, 5.81),
        "energy": (-1.58, 1.12),
        "wine-red": (-0.97, 0.637),
        "yacht": (-1.62, 1.32),
    },
}


def uci(store: Store) -> str:
    """The regression sets."""
    records = [r for r in store.records("uci") if r["method"] != "selection"]
    if not records:
        return ""
    chosen = {
        record["data"]: record for record in store.records("uci") if record["method"] == "selection"
    }
    sets = [name for name in ("yacht", "energy", "concrete", "wine-red") if name in chosen]
    parts = [UCI_INTRODUCTION]
    settings = [
        [
            name,
            f"{chosen[name]['scores']['prior_scale']:g}",
            f"{chosen[name]['scores']['learning_rate']:g}",
            f"{chosen[name]['settings']['num_steps']}",
        ]
        for name in sets
    ]
    parts.append(table(["set", "prior scale", "learning rate", "steps"], settings))
    parts += [uci_set(name, by_method([r for r in records if r["data"] == name])) for name in sets]
    parts.append(uci_conclusion(sets, records))
    return "\n\n".join(parts)


UCI_INTRODUCTION = """## Regression: four sets, 20 splits, 50 ReLU units

`OMP_NUM_THREADS=1 python benchmarks/uci.py --data-dir FOLDER`. One hidden layer, inputs and target
z-scored on the training rows, noise learned with a prior of its own, all rows and one draw in every
step. Prior scale and learning rate are those with which *mean field* predicts best on a held-out
fifth of the first split's training rows; all methods share them, the start and the random numbers.
Scores are on the test rows, in the target's own units. The bounds are certified lower bounds of the
evidence: *own* is that of the guide which a method trains, *both* that of the guide which permutes
and rescales, with the same factors. A guide trained with scales has no ELBO(q) to speak of. Active
units are those whose share of the mean function varies by more than .01 target deviations. Seconds
are those of a split when all of a set train side by side, on a processor that others used as well:
compare them within a table, and roughly. *Moved* is by how much the bound that is trained rose, in
the mean, from the last but one to the last tenth of the steps, with the learning rate near its end.
A deep ensemble has five members with the steps of one fit each; its noise is learned, and the same
for all inputs. MC dropout's rate is chosen as mean field's settings are."""


def uci_set(name: str, runs: dict[str, dict[int, Record]]) -> str:
    """The tables of one set."""
    rows = []
    for method in UCI_METHODS:
        if method not in runs:
            continue
        scores = [record["scores"] for record in runs[method].values()]
        columns = [
            Mean.of([s["log_likelihood"] for s in scores]).text(3),
            Mean.of([s["rmse"] for s in scores]).text(3),
        ]
        if "bounds" in scores[0]:
            own = method if method in scores[0]["bounds"] else MEAN_FIELD
            own = "permutations" if method.startswith("InfoNCE") else own
            columns += [
                Mean.of([s["bounds"][kind]["mean"] for s in scores]).text(1) for kind in (own, BOTH)
            ]
            columns += [
                Mean.of([s["active_units"] for s in scores]).text(1),
                f"{Mean.of([moved(s['trajectory']) for s in scores]).mean:.1f}",
            ]
        else:
            columns += [""] * 4
        columns.append(f"{Mean.of([s['seconds'] for s in scores]).mean:.0f}")
        rows.append([method, str(len(scores)), *columns])
    for source, figures in UCI_PUBLISHED.items():
        log_likelihood_, rmse = figures[name]
        rows.append(
            [f"*{source}*", "20", f"{log_likelihood_:.2f}", f"{rmse:g}", "", "", "", "", ""]
        )
    header = [
        "method",
        "splits",
        "log-likelihood",
        "RMSE",
        "own bound",
        "bound of both",
        "active",
        "moved",
        "seconds",
    ]
    over_permutations = gains(
        runs, BOTH, ["permutations"], lambda record: float(record["scores"]["bounds"][BOTH]["mean"])
    )
    parts = [f"### {name}", table(header, rows), uci_differences(runs), over_permutations]
    return "\n\n".join(filter(None, parts))


def uci_differences(runs: dict[str, dict[int, Record]]) -> str:
    """Each method against mean field, split by split."""
    if MEAN_FIELD not in runs:
        return ""
    rows = []
    for method in UCI_METHODS:
        if method == MEAN_FIELD or method not in runs:
            continue
        pairs = runs[method], runs[MEAN_FIELD]
        gain = paired(*pairs, log_likelihood)
        error = paired(*pairs, lambda record: record["scores"]["rmse"])
        if gain is None or error is None:
            continue
        bound = ""
        if all("bounds" in record["scores"] for record in runs[method].values()):
            bound = paired(*pairs, lambda record: record["scores"]["bounds"][BOTH]["mean"]).text(1)
        rows.append(
            [
                method,
                str(gain.num),
                f"{gain.text(3)}, {verdict(gain)}",
                f"{error.text(3)}, {verdict(error, larger_is_better=False)}",
                bound,
            ]
        )
    if not rows:
        return ""
    header = ["against mean field", "splits", "log-likelihood", "RMSE", "bound of both"]
    return table(header, rows)


def moved(trajectory: Sequence[float]) -> float:
    """From the last but one to the last tenth."""
    tenth = max(len(trajectory) // 10, 1)
    last, before = trajectory[-tenth:], trajectory[-2 * tenth : -tenth] or trajectory[:tenth]
    return sum(last) / len(last) - sum(before) / len(before)


def uci_conclusion(sets: Sequence[str], records: Sequence[Record]) -> str:
    """In a sentence for each method, what the paired differences say."""
    compared = [(method, MEAN_FIELD) for method in ("InfoNCE (K = 32)", "permutations", "scales")]
    compared += [(BOTH, MEAN_FIELD), *((peer, BOTH) for peer in PEERS)]
    lines = [line for pair in compared if (line := _comparison(*pair, sets, records))]
    lines += [line for name in sets if (line := why_both_tie(name, records))]
    restless = [name for name in sets if still_moves([r for r in records if r["data"] == name])]
    if restless:
        lines.append(
            f"- On {', '.join(restless)} a bound still rose by more than two nats in the last "
            "tenth of the steps: longer training may change these comparisons."
        )
    if not lines:
        return ""
    return "### What follows\n\n" + "\n".join(lines)


def _comparison(
    method: str, other: str, sets: Sequence[str], records: Sequence[Record]
) -> str | None:
    """On which sets a method predicts better than another, and on which worse."""
    words: dict[str, list[str]] = {}
    for name in sets:
        runs = by_method([r for r in records if r["data"] == name])
        if other in runs and method in runs:
            gain = paired(runs[method], runs[other], log_likelihood)
            if gain is not None:
                where = name if gain.num == 20 else f"{name} ({gain.num} splits)"
                words.setdefault(verdict(gain), []).append(where)
    order = [word for word in ("wins", "ties", "loses") if word in words]
    said = "; ".join(f"{word} on {', '.join(words[word])}" for word in order)
    return f"- **{method}** against {other}, in test log-likelihood: {said}." if said else None


def why_both_tie(name: str, records: Sequence[Record]) -> str:
    """Where permutations with scales predict no better: how little each row has of the gain."""
    runs = by_method([record for record in records if record["data"] == name])
    if not {MEAN_FIELD, BOTH} <= runs.keys():
        return ""
    gain = paired(runs[BOTH], runs[MEAN_FIELD], log_likelihood)
    bound = paired(
        runs[BOTH], runs[MEAN_FIELD], lambda record: float(record["scores"]["bounds"][BOTH]["mean"])
    )
    if gain is None or bound is None or verdict(gain) != "ties":
        return ""
    rows = NUM_TRAINING_ROWS[name]
    return (
        f"- On {name} the bound gains {bound.text(1)} nats, which is {bound.mean / rows:.3f} for "
        f"each of {rows} rows, and predictions tie."
    )


def still_moves(records: Sequence[Record]) -> bool:
    """Whether some method's bound rose by more than two nats at the end, in the mean."""
    trained = [r for r in records if "trajectory" in r["scores"]]
    return any(
        Mean.of([moved(r["scores"]["trajectory"]) for r in found.values()]).mean > _AT_REST
        for found in by_method(trained).values()
    )
