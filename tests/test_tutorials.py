"""Every tutorial runs, and finds what its text says."""

import math
import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

import pyro_perm as pp

TUTORIALS = Path(__file__).parents[1] / "tutorials"

pytestmark = pytest.mark.slow


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
    assert results["AutoSymmetrized"].base < results["AutoNormal"].base


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


def test_symmetries_are_found_and_wrong_ones_refused(run, capsys):
    names = run("03_finding_a_symmetry.py")
    assert names["symmetry"].groups == {"P0": 16, "P1": 8}
    assert names["by_hand"].groups == {"first": 6, "second": 12}
    assert names["coded"].groups == {"P0": 2, "P1": 4, "P2": 6}
    assert names["log_joint"](names["moved"]) == pytest.approx(
        names["log_joint"](names["values"]), rel=1e-5
    )
    assert names["elbo"].lower > names["elbo"].base + 20
    printed = capsys.readouterr().out
    for said in (
        "SymmetryVerificationError: group 'hidden' changes the log joint",
        "SymmetryVerificationError: group 'channels' changes the log joint",
        "ValueError: group 'hidden' has 16 units along axis 0 of site 'net.0.weight', but 8",
        "ValueError: found no permutation symmetry in the model",
    ):
        assert said in printed


def test_estimators_differ_in_what_they_see(run):
    names = run("04_choosing_an_estimator.py")
    exact = names["information"][-1]
    assert exact.upper - exact.lower < 0.1 < 100 < exact.lower < exact.log_order
    for num, values in names["info_nce"].items():
        assert values[-1] == pytest.approx(math.log(num))
    errors_of_bethe = [
        abs(bethe - exact)
        for bethe, exact in zip(
            *(names["estimates"][key] for key in ("Bethe", "Exact")), strict=True
        )
    ]
    assert max(errors_of_bethe) < 0.2
    errors = names["errors"]
    assert min(errors["InfoNCE K=32"][:4]) > 0.99
    assert max(errors["Bethe"]) < 0.2 and max(errors["ImportanceSampled K=32"]) < 0.2
    default = names["single"]["None"]
    assert default.upper - default.lower < 0.1
    gaps = {scale: bound.upper - bound.lower for scale, bound in names["coupled"].items()}
    assert gaps[0.6] < gaps[0.3]


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
    held_out = results["held_out"]
    assert held_out["NUTS"] > max(held_out["AutoNormal"], held_out["AutoSymmetrized"]) + 5
    assert abs(held_out["AutoNormal"] - held_out["AutoSymmetrized"]) < 2
    elpd = results["comparison"].filter(regex="^elpd(_loo)?$").squeeze(axis=1)
    for name in ("AutoNormal", "AutoSymmetrized"):
        assert elpd[name] < held_out[name] - 20
    assert abs(elpd["AutoNormal"] - elpd["AutoSymmetrized"]) > 5
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


def test_symmetrized_elbos_rank_mixtures_as_the_evidence_does(run):
    names = run("07_label_switching.py")
    sizes, evidence, plain, trained = (
        names[name] for name in ("SIZES", "evidence", "elbos", "trained_elbos")
    )
    assert max(evidence, key=evidence.get) == 3
    assert max(sizes, key=lambda k: trained[k].lower) == 3
    assert max(sizes, key=lambda k: plain[k].lower) == 3
    assert max(sizes, key=lambda k: plain[k].base) == 2
    for k in sizes:
        for elbo in (plain[k], trained[k]):
            assert elbo.lower < evidence[k] + 3 * elbo.lower_standard_error
            assert elbo.lower > evidence[k] - 0.6
        assert plain[k].mutual_information.lower > 0.85 * plain[k].log_order
    orders = names["draws_of"](names["symmetrized"][3]).argsort(-1).unique(dim=0)
    assert len(orders) == 6
    assert len(names["draws_of"](names["plain"][3]).argsort(-1).unique(dim=0)) < 6
    weighted = names["weighted_elbo"]
    assert weighted.mutual_information.lower > 0.85 * weighted.log_order
    assert weighted.lower < names["weighted_evidence"].log_evidence


def test_symmetrized_elbos_charge_less_for_width(run):
    names = run("08_width_and_data.py")
    for (num, few, many), (plain, symmetrized) in names["charges"].items():
        assert symmetrized < plain - 3, (num, few, many)
    plain, symmetrized = names["charges"][20, 2, 6]
    assert 0 < symmetrized < 0.5 * plain
    picked, scores, active = names["picked"], names["scores"], names["active"]
    assert picked[20, "ELBO(q) of AutoNormal"] == 2
    assert picked[20, "ELBO(q^G) of AutoSymmetrized"] == 2
    assert {width for (num, _), width in picked.items() if num == 100} == {6}
    for guide in names["GUIDES"]:
        assert scores[20, 2, guide] < scores[20, 6, guide] - 0.5
        assert scores[20, 6, guide] - 0.2 < scores[20, 18, guide]
    for num in names["SIZES"]:
        assert active[num, 18, "AutoSymmetrized"] > active[num, 18, "AutoNormal"]


def test_training_for_the_whole_symmetry_predicts_better(run):
    names = run("09_the_whole_symmetry.py")
    base, symmetrized = names["base_draws"], names["draws"]
    products, others = (each["u"] * each["v"] for each in (base, symmetrized))
    error = ((products.var() + others.var()) / len(products)) ** 0.5
    assert (products.mean() - others.mean()).abs() < 4 * error
    along, whole_orbit = ((each["u"] / each["v"]).abs().log().std() for each in (base, symmetrized))
    assert whole_orbit > 2 * along
    assert names["whole"].groups == {"P0": 20}
    best, *others = reversed(names["losses"])
    for seed in names["SEEDS"]:
        elbo, held_out, _ = names["results"][best, seed]
        for other in others:
            elbo_of_other, held_out_of_other, _ = names["results"][other, seed]
            assert held_out > held_out_of_other
            assert elbo.lower > elbo_of_other.lower + 2
            assert elbo.mutual_information.scales > elbo_of_other.mutual_information.scales


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_laplaces_evidence_gains_the_copies_of_its_mode(run):
    pytest.importorskip("laplace", exc_type=ImportError)
    names = run("10_networks_and_laplace.py")
    assert names["symmetry"].groups == {"P0": 6, "P1": 12}
    barrier = names["barrier"]
    assert barrier.aligned.barrier < 0.5 * barrier.original.barrier
    evidence, order = names["evidence"], names["symmetry"].log_order
    gains = [bound - evidence.base for bound in (evidence.lower, evidence.upper)]
    # In single precision, draws of a thousand weights have log-densities right to 1e-3.
    assert 0.95 * order < gains[0] <= gains[1] < order + 1e-2
    assert names["accuracies"]["mode"] > max(0.6, names["accuracies"]["Laplace"])
