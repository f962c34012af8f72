"""Small real data sets, all from scikit-learn, with a fixed held-out split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pyro_perm.demo.sources import SOURCES


@dataclass(frozen=True)
class Split:
    """Inputs ``x`` of shape ``(N, D)`` and targets ``y`` of shape ``(N,)``."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Dataset:
    """A data set, standardized by its training split; 20 percent are held out.

    Attributes:
        name: its name.
        train: the training split.
        test: the held-out split.
        num_classes: number of classes, or None for regression.
    """

    name: str
    train: Split
    test: Split
    num_classes: int | None


def load(name: str) -> Dataset:
    """Load a data set; the split is the same every time.

    :param name: one of ``SOURCES``.
    """
    source = SOURCES[name]
    x, y = getattr(datasets, source.loader)(return_X_y=True)
    strata = y if source.classification else None
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=0.2, random_state=0, stratify=strata
    )
    x_train, x_test = _standardize(x_train, x_test)
    if not source.classification:
        y_train, y_test = _standardize(y_train[:, None], y_test[:, None])
        y_train, y_test = y_train[:, 0], y_test[:, 0]
    dtype = torch.long if source.classification else torch.get_default_dtype()
    train, test = (
        Split(torch.as_tensor(x, dtype=torch.get_default_dtype()), torch.as_tensor(y, dtype=dtype))
        for x, y in ((x_train, y_train), (x_test, y_test))
    )
    return Dataset(name, train, test, int(y.max()) + 1 if source.classification else None)


def _standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)
