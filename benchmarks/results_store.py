"""One JSON file a run, so that a benchmark resumes where it stopped and pages come from files.

``results/<benchmark>/<data>/<method>/<seed>.json`` holds what was asked for, what came out, and the
versions that computed it. A file appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"
# What some benchmarks compare with or take networks from, and its module.
_PEERS = {"laplace-torch": "laplace", "torchvision": "torchvision"}
_PACKAGES = ("pyro_perm", "torch", "pyro-ppl", "numpy", "scipy")


@dataclass(frozen=True)
class Run:
    """What a file is about.

    Attributes:
        benchmark: name of the script.
        data: name of the data set, or of what stands for it.
        method: what was trained or estimated.
        seed: of the run; the number of the split where data is split.
    """

    benchmark: str
    data: str
    method: str
    seed: int


class Store:
    """The files below one folder."""

    def __init__(self, root: Path = RESULTS) -> None:
        self.root = Path(root)

    def path(self, run: Run) -> Path:
        """Where a run's file is."""
        folder = self.root / run.benchmark / _slug(run.data) / _slug(run.method)
        return folder / f"{run.seed:02d}.json"

    def has(self, run: Run, settings: dict[str, Any]) -> bool:
        """Whether a run is done.

        :raises ValueError: if it was done with other settings.
        """
        path = self.path(run)
        if not path.exists():
            return False
        found = json.loads(path.read_text())["settings"]
        if found != json.loads(json.dumps(settings)):
            raise ValueError(
                f"{path} was made with settings {found}, but {settings} are asked for: remove the "
                "file, or give --results another folder"
            )
        return True

    def read(self, run: Run) -> dict[str, Any]:
        """A run's file."""
        return json.loads(self.path(run).read_text())

    def save(self, run: Run, settings: dict[str, Any], scores: dict[str, Any]) -> Path:
        """Write a run's file.

        :param settings: what defines the run; JSON's types.
        :param scores: what came out.
        """
        path = self.path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {**asdict(run), "settings": settings, "scores": scores, "versions": versions()}
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(_rounded(record), indent=1) + "\n")
        unfinished.replace(path)
        return path

    def records(self, benchmark: str) -> list[dict[str, Any]]:
        """All of a benchmark, in the order of their files."""
        files = sorted((self.root / benchmark).rglob("*.json"))
        return [json.loads(path.read_text()) for path in files]


class Mean(NamedTuple):
    """Mean and its standard error over runs."""

    mean: float
    error: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """From one value a run."""
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), spread / math.sqrt(len(values)), len(values))

    def text(self, digits: int) -> str:
        """As ``1.23 ± 0.04``."""
        mean = f"{self.mean:.{digits}f}"
        return mean if math.isnan(self.error) else f"{mean} ± {self.error:.{digits}f}"


def versions() -> dict[str, str]:
    """Of what computes, the commit of the working tree, and the processor."""
    peers = [package for package in _PEERS if find_spec(_PEERS[package])]
    installed = {package: version(package) for package in (*_PACKAGES, *peers)}
    threads = str(torch.get_num_threads())
    computer = {"threads": threads, "processor": _processor()}
    return {"python": platform.python_version(), **installed, "commit": _commit(), **computer}


def _processor() -> str:
    """The name of its kind, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _rounded(value: Any) -> Any:
    """Floats to seven digits: nothing here is known better."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return value
