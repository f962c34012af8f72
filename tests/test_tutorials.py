"""Every tutorial runs, and finds what its text says."""

import runpy
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib import pyplot

matplotlib.use("Agg")
TUTORIALS = Path(__file__).parents[1] / "tutorials"


def test_quickstart_gains_by_symmetrization():
    torch.set_default_dtype(torch.float32)
    results = runpy.run_path(str(TUTORIALS / "01_quickstart.py"))["results"]
    assert results["AutoSymmetrized"].lower > results["AutoNormal"].upper
    assert results["AutoSymmetrized"].mean_field < results["AutoNormal"].mean_field


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.trace.*:DeprecationWarning",  # Pyro's jit_compile uses it.
    "ignore:.*Pareto:UserWarning",
    "ignore:The inplace keyword in DataFrame",  # ArviZ 0.23's own
)
def test_comparison_ranks_three_posteriors(monkeypatch):
    monkeypatch.setattr("torch.multiprocessing.cpu_count", lambda: 1)  # Chains one by one.
    torch.set_default_dtype(torch.float32)
    results = runpy.run_path(str(TUTORIALS / "05_comparing_posteriors.py"))
    pyplot.close("all")
    posteriors = results["posteriors"]
    assert set(results["comparison"].index) == set(posteriors)
    assert posteriors["NUTS"]["posterior"].sizes["chain"] == 2
    symmetrized, plain = (
        posteriors[name]["posterior"]["w2"].mean(("chain", "draw")).values.flatten()
        for name in ("AutoSymmetrized", "AutoNormal")
    )
    assert symmetrized.max() - symmetrized.min() < 0.15
    assert plain.max() - plain.min() > 0.5
    diagnostics = results["diagnostics"]
    assert diagnostics.aligned.largest_rhat < diagnostics.original.largest_rhat
    assert diagnostics.functions.largest_rhat < 1.1
