"""The sections on networks of torch.nn: their symmetry, and the width that Laplace picks."""

from __future__ import annotations

import re
from collections import Counter

from results_store import Store
from results_tables import Record, table

NUM_CLASSIFIERS = 80  # Of torchvision 0.26 to 0.28.
OWN, SMALL = "torch parts", 64
FAMILY = re.compile(r"(wide_)?[a-z]+(_v\d)?")


def modules(store: Store) -> str:
    """What is found in networks of torch.nn, in short."""
    main = _main_records(store)
    if not main:
        return ""
    link = "[The table of all networks](modules.md#coverage) is on the page about them."
    return f"## Symmetries of networks\n\n{_coverage(main)} {link}"


def coverage(store: Store) -> str:
    """The section on what is found in networks of torch.nn."""
    records = store.records("modules")
    main = sorted(_main_records(store), key=_place)
    rows, last = [], ""
    for record in main:
        rows.append([_family(record) if _family(record) != last else "", *_network(record)])
        last = _family(record)
    header = ["family", "network", "10^6 parameters", "groups", "units"]
    header += ["log G", "seconds", "change", "not found"]
    parts = [COVERAGE_INTRODUCTION, _coverage(main), table(header, rows), _sizes(main)]
    parts += [_machines(main), _agreement(_found(records)), _failures(records), NETWORKS_EXPLAINED]
    return "\n\n".join(filter(None, parts))


COVERAGE_INTRODUCTION = """\
`OMP_NUM_THREADS=1 python benchmarks/modules.py`. Networks of torchvision and of torch parts with
random weights and running moments, in `eval` mode: groups, the units in them, `log |G|` in nats,
CPU seconds of the discovery on one thread, and the largest change of an output under a random
element of the whole group in double precision, relative to the largest output. The last column
names axes that stay fixed for another reason than that they are inputs, outputs, places of
kernels or numbers of tokens."""

NETWORKS_EXPLAINED = """\
ShuffleNet interleaves the channels that a unit passes by with those that it makes. Half of what
a unit makes is consumed by the next one, a quarter by the one after it, and so on, until the
next stage takes the rest. Channels of one layer may be permuted if the same layers consume them,
and no others: that is a group for each half, quarter and so on, and all the symmetry there is. A
test follows the channels of the published widths through the shuffles, and finds the groups of
the table. Relative positions stay: their tables are indexed by place (Swin, MaxViT), or computed
from coordinates, which are data (Swin v2)."""


def _found(records: list[Record]) -> list[Record]:
    return [record for record in records if "failure" not in record["scores"]]


def _main_records(store: Store) -> list[Record]:
    """Each network on its smallest images, the smallest network first."""
    found = _found(store.records("modules"))
    main = [record for record in found if not _is_repeated(record, found)]
    return sorted(main, key=lambda record: record["scores"]["parameters"])


def _family(record: Record) -> str:
    match = FAMILY.match(record["data"])
    return match.group() if match and _pixels(record) else OWN


def _place(record: Record) -> tuple[bool, str, float]:
    """Families by name, ours last, and in each the smallest network first."""
    family = _family(record)
    return family == OWN, family, record["scores"]["parameters"]


def _network(record: Record) -> list[str]:
    scores = record["scores"]
    sizes = {int(size): num for size, num in scores["groups"].items()}
    not_found = dict.fromkeys(map(_in_short, scores["not found"]))
    return [
        record["data"],
        f"{scores['parameters'] / 1e6:.2f}",
        str(sum(sizes.values())),
        str(sum(size * num for size, num in sizes.items())),
        f"{scores['log_order']:.0f}",
        f"{scores['seconds']:.1f}",
        f"{scores['change']:.0e}",
        "; ".join(not_found) or "-",
    ]


def _in_short(reason: str) -> str:
    """A reason without its place in the code and the number of axes, and a buffer's last name."""
    reason = re.sub(r"( \(\w+\.py:\d+\))?( \(\d+ axes\))?$", "", reason)
    return re.sub(r"'[\w.]+\.(\w+)'", r"'\1'", reason)


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


def _sizes(main: list[Record]) -> str:
    """On which images."""
    others: dict[int, list[str]] = {}
    for record in main:
        if _pixels(record) not in (0, SMALL):
            others.setdefault(_pixels(record), []).append(record["data"])
    but = [f"{size} for {', '.join(names)}" for size, names in sorted(others.items())]
    return (
        f"Images have {SMALL} pixels a side{', but ' if but else ''}{'; '.join(but)}. The weights "
        "are those for 224, but for the positions of a vision transformer's patches."
    )


def _machines(main: list[Record]) -> str:
    """What computed how many of the networks."""
    kinds = Counter(map(_computer, main))
    told = "; ".join(f"{kind} ({number} networks)" for kind, number in kinds.most_common())
    return f"Computed by {told}."


def _computer(record: Record) -> str:
    versions, device = record["versions"], record["scores"].get("device", "cpu")
    libraries = [name for name in ("torchvision", "torch") if name in versions]
    told = ", ".join(f"{name} {versions[name]}" for name in libraries)
    beside = f"{device} beside " if device != "cpu" else ""
    return f"{told} on {beside}{versions['processor']}"


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
