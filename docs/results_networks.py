"""The sections on networks of torch.nn: their symmetry, and the width that Laplace picks."""

from __future__ import annotations

from results_store import Store
from results_tables import Record, table

NUM_CLASSIFIERS = 80  # Of torchvision 0.28.


def modules(store: Store) -> str:
    """What is found in networks of torch.nn."""
    records = store.records("modules")
    if not records:
        return ""
    found = [r for r in records if "failure" not in r["scores"]]
    main = [r for r in found if not _is_repeated(r, found)]
    main.sort(key=lambda record: record["scores"]["parameters"])
    rows = [_network(record) for record in main]
    header = ["network", "input", "10^6 parameters", "groups", "units"]
    header += ["log G", "seconds", "change", "not found"]
    parts = [MODULES_INTRODUCTION, table(header, rows), _coverage(main)]
    parts += [_agreement(found), _failures(records)]
    return "\n\n".join(filter(None, parts))


MODULES_INTRODUCTION = """## Symmetries of networks

`OMP_NUM_THREADS=1 python benchmarks/modules.py`. Networks of torchvision and of torch parts with
random weights and running moments, in `eval` mode: groups, the units in them, `log |G|` in nats,
CPU seconds of the discovery on one thread, and the largest change of an output under a random
element of the whole group in double precision, relative to the largest output. The last column
names axes that stay fixed for another reason than that they are inputs, outputs, places of kernels
or numbers of tokens. Images are smaller than the usual 224 pixels where a network takes them: its
weights are the same, but for the positions of a vision transformer's patches."""


def _network(record: Record) -> list[str]:
    scores = record["scores"]
    sizes = {int(size): num for size, num in scores["groups"].items()}
    return [
        record["data"],
        record["method"],
        f"{scores['parameters'] / 1e6:.2f}",
        str(sum(sizes.values())),
        str(sum(size * num for size, num in sizes.items())),
        f"{scores['log_order']:.0f}",
        f"{scores['seconds']:.1f}",
        f"{scores['change']:.0e}",
        "; ".join(scores["not found"]) or "-",
    ]


def _is_repeated(record: Record, records: list[Record]) -> bool:
    """Whether a network has been run on smaller images too."""
    return any(
        other["data"] == record["data"] and _pixels(other) < _pixels(record) for other in records
    )


def _pixels(record: Record) -> int:
    first = record["method"].split()[0]
    return int(first) if first.isdigit() else 0


def _coverage(main: list[Record]) -> str:
    classifiers = [record for record in main if _pixels(record)]
    complete = [record for record in classifiers if not record["scores"]["not found"]]
    largest = max(record["scores"]["change"] for record in main)
    return (
        f"{len(classifiers)} of torchvision's {NUM_CLASSIFIERS} classifiers have been run; in "
        f"{len(complete)} of them nothing is left that is not accounted for. No output changes by "
        f"more than {largest:.0e}."
    )


def _agreement(found: list[Record]) -> str:
    """Whether networks that have been run on larger images as well have the same groups there."""
    groups: dict[str, dict[int, Record]] = {}
    for record in found:
        groups.setdefault(record["data"], {})[_pixels(record)] = record["scores"]["groups"]
    several = {name: by_size for name, by_size in groups.items() if len(by_size) > 1}
    same = [n for n, by_size in several.items() if len({str(g) for g in by_size.values()}) == 1]
    other = [name for name in several if name not in same]
    lines = [f"On images of 224 pixels the groups are the same: {', '.join(same)}."] * bool(same)
    lines += [f"They are others there: {', '.join(other)}."] * bool(other)
    return " ".join(lines)


def _failures(records: list[Record]) -> str:
    failed = [r for r in records if "failure" in r["scores"]]
    texts = (f"{r['data']} ({r['scores']['failure']})" for r in failed)
    return f"Not done: {', '.join(texts)}." if failed else ""


def laplace_width(store: Store) -> str:
    """The evidence of networks of several widths."""
    records = store.records("laplace-width")
    if not records:
        return ""
    records.sort(key=lambda record: int(record["method"].split()[0]))
    rows = [
        [
            record["method"].split()[0],
            f"{s['laplace']:.1f}",
            f"[{s['lower']:.1f}, {s['upper']:.1f}]",
            f"{s['log_order']:.1f}",
            f"{s['annealed']:.1f} ± {s['annealed_error']:.1f}",
        ]
        for record in records
        for s in [record["scores"]]
    ]
    header = ["width", "Laplace", "with I", "log n!", "annealed importance sampling"]
    widths = {
        name: max(records, key=lambda record: record["scores"][key])["method"]
        for name, key in (
            ("Laplace's evidence", "laplace"),
            ("that with `I`", "lower"),
            ("annealed importance sampling", "annealed"),
        )
    }
    picked = ", ".join(f"{name} {width}" for name, width in widths.items())
    conclusion = f"{picked[0].upper()}{picked[1:]}: the widths that each picks of these."
    return "\n\n".join([LAPLACE_INTRODUCTION, table(header, rows), conclusion])


LAPLACE_INTRODUCTION = """## The width that Laplace picks

`OMP_NUM_THREADS=1 python benchmarks/laplace_width.py --widths 1 2 3 4 5 --num-starts 20
--num-temperatures 300 --num-particles 100`. A regression on 15 points, Laplace with the exact
Hessian at the best of 20 modes, its evidence with the certified gain `I(g; w)` of the mode's
equivalent copies, and annealed importance sampling, whose estimates are too low where its chains
are too short."""
