"""Benchmarks are scripts: their folder comes first on the path, and single precision is theirs."""

import sys
from pathlib import Path

import pytest
import torch

_FOLDER = str(Path(__file__).parents[2] / "benchmarks")
if _FOLDER not in sys.path:
    sys.path.insert(0, _FOLDER)


@pytest.fixture(autouse=True)
def _single_precision(_clean_state):
    torch.set_default_dtype(torch.float32)
