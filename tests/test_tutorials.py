"""Every tutorial runs, and finds what its text says."""

import math
import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

TUTORIALS = Path(__file__).parents[1] / "tutorials"


@pytest.fixture
def run(monkeypatch):
    """Runs a tutorial in single precision, its figures drawn but not shown; gives its names."""

    def show():
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", show)
    torch.set_default_dtype(torch.float32)
    with matplotlib.rc_context():
        yield lambda name: runpy.run_path(str(TUTORIALS / name))


def test_quickstart_gains_by_symmetrization(run):
    results = run("01_quickstart.py")["results"]
    assert results["AutoSymmetrized"].lower > results["AutoNormal"].upper
    assert results["AutoSymmetrized"].mean_field < results["AutoNormal"].mean_field


def test_unimodal_guides_miss_symmetric_posteriors(run):
    names = run("02_why_symmetrize.py")
    assert ((names["thresholds"]["sd s"] - 5).abs() < 0.15).all()
    assert (names["thresholds"]["sd 1"] > 4.75).all()
    assert names["best_from"] == pytest.approx(5.7)
    assert names["found"][-1] == pytest.approx(math.log(2), abs=1e-3)
    kl, mse = names["kl"], names["mse"]
    for alpha in names["ALPHAS"]:
        assert kl[alpha, "Exact"] < 0.03 < kl[alpha, "mean field"] - 0.05
        assert kl[alpha, "Exact"] < kl[alpha, "InfoNCE K=2"] < kl[alpha, "mean field"] + 0.005
        for better in ("Exact", "posterior"):
            assert (mse[alpha, better] > mse[alpha, "mean field"]) == (alpha < 0.15)
