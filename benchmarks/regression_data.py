"""The regression sets of the UCI repository that the field compares on, and their 20 splits.

``RandomState(1)`` permutes the rows anew for each split; the first nine tenths are trained on. Rows
must be in the order of the public benchmark files (Hernandez-Lobato & Adams 2015; Gal & Ghahramani
2016), as ``--data-dir`` has them; ``ucimlrepo`` may order them otherwise, and then splits differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_SPLITS = 20
# Name -> file, number in the repository, and which target is predicted.
SETS = {
    "yacht": ("yacht", 243, 0),
    "energy": ("energy", 242, 0),
    "concrete": ("concrete", 165, 0),
    "wine-red": ("wine-quality-red", 186, 0),
}


@dataclass(frozen=True)
class Stack:
    """One data set's rows for several runs, z-scored on the rows that each is trained on.

    Attributes:
        x: shape ``(runs, rows, inputs)``.
        y: shape ``(runs, rows)``.
        test_x: likewise, as ``test_y``.
        unit: the target's standard deviation on training rows, shape ``(runs,)``.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    unit: Tensor

    def take(self, runs: Tensor) -> Stack:
        """Some of the runs, in any order."""
        return Stack(
            *(part[runs] for part in (self.x, self.y, self.test_x, self.test_y, self.unit))
        )


def load_rows(name: str, folder: Path | None) -> NDArray[np.float64]:
    """All rows of a set, the target last.

    :param folder: where the files are; None asks ``ucimlrepo``, which needs the network.
    :raises FileNotFoundError: if there is neither.
    """
    stem, number, target = SETS[name]
    if folder is not None:
        files = [
            path for path in Path(folder).glob(f"{stem}.*") if path.suffix in (".txt", ".data")
        ]
        if not files:
            raise FileNotFoundError(f"no {stem}.txt in {folder}: give --data-dir its folder")
        return np.loadtxt(files[0])
    try:
        from ucimlrepo import fetch_ucirepo
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"no data for {name}: give --data-dir a folder with {stem}.txt, or install ucimlrepo"
        ) from error
    data = fetch_ucirepo(id=number).data
    rows = data.features.assign(target=data.targets.iloc[:, target])
    if name == "wine-red" and "color" in data.original:
        rows = rows[data.original["color"] == "red"]
    return rows.to_numpy(dtype=float)


def standard_splits(num_rows: int, num_splits: int = NUM_SPLITS) -> list[tuple[NDArray, NDArray]]:
    """Numbers of the rows to train on and to test on."""
    source = np.random.RandomState(1)
    num_train = round(0.9 * num_rows)
    orders = [source.choice(num_rows, num_rows, replace=False) for _ in range(num_splits)]
    return [(order[:num_train], order[num_train:]) for order in orders]


def validation_split(train: NDArray) -> tuple[NDArray, NDArray]:
    """A split's training rows, a fifth of them held out."""
    num_train = round(0.8 * len(train))
    return train[:num_train], train[num_train:]


def stack(rows: NDArray, splits: list[tuple[NDArray, NDArray]]) -> Stack:
    """The splits side by side, in single precision."""
    parts = [_standardized(rows[train], rows[test]) for train, test in splits]
    return Stack(
        *(torch.tensor(np.stack(kind), dtype=torch.float32) for kind in zip(*parts, strict=True))
    )


def _standardized(train: NDArray, test: NDArray) -> tuple[NDArray, ...]:
    mean, deviation = train.mean(0), train.std(0)
    deviation[deviation == 0] = 1.0
    train, test = (train - mean) / deviation, (test - mean) / deviation
    return train[:, :-1], train[:, -1], test[:, :-1], test[:, -1], np.asarray(deviation[-1])
