"""The section on accelerators: what a step costs there."""

from __future__ import annotations

from results_store import Store
from results_tables import Record, table


def devices(store: Store) -> str:
    """Steps a second of each network on each device."""
    records = store.records("device")
    if not records:
        return ""
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        method, _, checks = record["method"].rpartition(", ")
        rows.setdefault((record["data"], method), {})[checks] = record
    order = sorted(rows, key=_place)
    header = ["network", "guide", "steps / s", "unchecked", "ms more", "peak MB", "waits"]
    body = table(header, [_row(key, rows[key]) for key in order])
    computer = records[0]["versions"]
    names = sorted({record["data"].partition(": ")[0] for record in records})
    where = f"{', '.join(names)}, torch {computer['torch']}"
    return f"{INTRODUCTION}\n\n{where}:\n\n{body}"


NETWORKS = ["784-400-10", "784-4000-10", "ResNet-20", "4 transformer layers"]
METHODS = ["AutoNormal", "permutations", "permutations and scales"]

INTRODUCTION = """## Steps on an accelerator

`python benchmarks/device.py --results FOLDER`. Batches of 128 rows, losses without traces, Adam
with fused steps. *Unchecked* are steps a second after `pyro.enable_validation(False)`. *ms more* is
what a step takes more than the AutoNormal's, with checks, as are the peak of the device's memory
and *waits*, how often a step waits for the device. On networks of this size a step is bound by the
launch of kernels, not by their arithmetic."""


def _place(key: tuple[str, str]) -> tuple[str, int, int]:
    device, _, network = key[0].partition(": ")
    return device, NETWORKS.index(network), METHODS.index(key[1])


def _row(key: tuple[str, str], found: dict[str, Record]) -> list[str]:
    data, method = key
    checked = found["checked"]["scores"]
    unchecked = found["unchecked"]["scores"] if "unchecked" in found else None
    return [
        data.partition(": ")[2],
        method,
        f"{checked['steps_per_second']:.0f}",
        "" if unchecked is None else f"{unchecked['steps_per_second']:.0f}",
        "" if method == METHODS[0] else f"{checked['milliseconds_more']:.1f}",
        "" if checked["megabytes"] is None else f"{checked['megabytes']:.0f}",
        "" if checked["waits"] is None else str(checked["waits"]),
    ]
