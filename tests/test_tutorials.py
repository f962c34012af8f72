"""Every tutorial runs, and finds what its text says."""

import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

import pyro_perm as pp

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


def test_symmetries_are_found_and_wrong_ones_refused(run, capsys):
    names = run("03_finding_a_symmetry.py")
    assert names["symmetry"].groups == {"P0": 16, "P1": 8}
    assert names["by_hand"].groups == {"first": 6, "second": 12}
    assert names["coded"].groups == {"P0": 2, "P1": 4, "P2": 6}
    assert names["log_joint"](names["moved"]) == pytest.approx(
        names["log_joint"](names["values"]), rel=1e-5
    )
    assert names["elbo"].lower > names["elbo"].mean_field + 20
    printed = capsys.readouterr().out
    for said in (
        "SymmetryVerificationError: group 'hidden' changes the log joint",
        "SymmetryVerificationError: group 'channels' changes the log joint",
        "ValueError: group 'hidden' has 16 units along axis 0 of site 'net.0.weight', but 8",
        "ValueError: found no permutation symmetry in the model",
    ):
        assert said in printed


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.trace.*:DeprecationWarning",  # Pyro's jit_compile uses it.
    "ignore:.*Pareto:UserWarning",
    "ignore:The inplace keyword in DataFrame",  # ArviZ 0.23's own
)
def test_comparison_ranks_three_posteriors(run, monkeypatch):
    monkeypatch.setattr("torch.multiprocessing.cpu_count", lambda: 1)  # Chains one by one.
    results = run("05_comparing_posteriors.py")
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


def test_separated_channels_leave_nothing_to_train_for(run):
    names = run("06_convolutional_classifier.py")
    assert names["symmetry"].groups == {"P0": 8, "P1": 16}
    plain, symmetrized = names["elbos"].values()
    for elbo in (plain, symmetrized):
        assert elbo.mutual_information.lower > 0.9 * elbo.log_order
    assert abs(symmetrized.lower - plain.lower) < 40
    for prediction in names["predictions"].values():
        confidence = prediction.mean.max(-1).values.mean()
        assert pp.metrics.accuracy(prediction.mean, names["y_test"]) > max(0.94, confidence)
    assert abs(names["difference"].mean()) < 0.03


def test_symmetrized_elbos_rank_mixtures_as_the_evidence_does(run, capsys):
    names = run("07_label_switching.py")
    sizes, evidence, plain, trained = (
        names[name] for name in ("SIZES", "evidence", "elbos", "trained_elbos")
    )
    assert max(evidence, key=evidence.get) == 3
    assert max(sizes, key=lambda k: trained[k].lower) == 3
    assert max(sizes, key=lambda k: plain[k].lower) == 3
    assert max(sizes, key=lambda k: plain[k].mean_field) == 2
    for k in sizes:
        for elbo in (plain[k], trained[k]):
            assert elbo.lower < evidence[k] + 3 * elbo.lower_standard_error
            assert elbo.lower > evidence[k] - 0.6
        assert plain[k].mutual_information.lower > 0.85 * plain[k].log_order
    orders = names["draws_of"](names["symmetrized"][3]).argsort(-1).unique(dim=0)
    assert len(orders) == 6
    assert len(names["draws_of"](names["plain"][3]).argsort(-1).unique(dim=0)) < 6
    sampled = names["sampled_evidence"](names["mixture"], names["symmetrized"][3], 3)
    assert sampled == pytest.approx(evidence[3], abs=0.2)
    assert "Simplex() is not a product of intervals" in capsys.readouterr().out
