"""Every tutorial runs, and finds what its text says."""

import runpy
from pathlib import Path

import torch

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def test_quickstart_gains_by_symmetrization():
    torch.set_default_dtype(torch.float32)
    results = runpy.run_path(str(TUTORIALS / "01_quickstart.py"))["results"]
    assert results["AutoSymmetrized"].lower > results["AutoNormal"].upper
    assert results["AutoSymmetrized"].mean_field < results["AutoNormal"].mean_field
