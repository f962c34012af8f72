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


def test_estimators_differ_in_what_they_see(run):
    names = run("04_choosing_an_estimator.py")
    exact = names["information"][-1]
    assert exact.upper - exact.lower < 0.1 < 100 < exact.lower < exact.log_order
    for num, values in names["info_nce"].items():
        assert values[-1] == pytest.approx(math.log(num))
    excess = [
        bethe - exact
        for bethe, exact in zip(
            *(names["estimates"][key] for key in ("Bethe", "Exact")), strict=True
        )
    ]
    assert min(excess) > -1e-3 and 1.5 < max(excess) < 1.8
    errors = names["errors"]
    assert min(errors["InfoNCE K=32"][:4]) > 0.99
    assert max(errors["Bethe"]) < 0.2 and max(errors["ImportanceSampled K=32"]) < 0.2
    default = names["single"]["None"]
    assert default.upper - default.lower < 0.1
    gaps = {scale: bound.upper - bound.lower for scale, bound in names["coupled"].items()}
    assert gaps[0.6] < gaps[0.3]
