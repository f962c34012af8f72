"""Smoke runs of the short benchmarks: they write their files, and do not repeat themselves."""

import sys
from collections import Counter
from pathlib import Path

import cold_posterior
import device
import mnist
import numpy as np
import pruning
import pytest
import recipes
import torch
from recipe_table import convergence
from results_store import Run, Store

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import results_devices


def test_pruning(tmp_path, monkeypatch):
    arguments = ["--results", str(tmp_path), "--sizes", "6", "--widths", "3", "--steps", "2"]
    arguments += ["--draws", "3", "--seeds", "2"]
    pruning.main(arguments)
    records = Store(tmp_path).records("pruning")
    assert len(records) == 3 * 2
    assert all(0 <= record["scores"]["active_units"] <= 3 for record in records)
    monkeypatch.setattr(pruning, "train", None)
    pruning.main(arguments)


def test_waves_differ_by_seed():
    data = pruning.wave(20, [0, 1])
    assert data.x.shape == (2, 20, 1)
    assert data.test_y.shape == (2, 500)
    assert not torch.equal(data.x[0], data.x[1])


@pytest.fixture
def rows(tmp_path):
    source = np.random.default_rng(0)
    np.savetxt(tmp_path / "yacht.txt", source.normal(size=(40, 3)))
    arguments = ["--set", "yacht", "--data-dir", str(tmp_path), "--results", str(tmp_path / "out")]
    return [*arguments, "--splits", "2", "--steps", "3", "--draws", "20", "--units", "4"]


def test_cold_posteriors(rows, tmp_path, monkeypatch):
    cold_posterior.main(rows)
    records = Store(tmp_path / "out").records("cold-posterior")
    assert len(records) == 2 * len(cold_posterior.WEIGHTS)
    monkeypatch.setattr(cold_posterior, "train", None)
    cold_posterior.main(rows)


def test_the_divergence_counts_for_less():
    class Posteriors:
        def kl(self):
            return torch.ones(2, 5)

    weighted = cold_posterior.tempered(0.1)(Posteriors())
    torch.testing.assert_close(weighted, torch.full((2,), -0.5))


def test_mnist(tmp_path, monkeypatch):
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(30, 4, generator=source), torch.arange(30) % 10
    monkeypatch.setattr(mnist, "images", lambda: (x[:20], y[:20], x[20:], y[20:]))
    arguments = ["--results", str(tmp_path), "--units", "3", "--steps", "2", "--draws", "10"]
    mnist.main([*arguments, "--seeds", "2"])
    records = Store(tmp_path).records("mnist")
    assert len(records) == 2 * len(mnist.objectives())
    scores = records[0]["scores"]
    assert 0 <= scores["accuracy"] <= 100
    assert scores["bounds"]["mean field"] < scores["bounds"]["permutations"]
    monkeypatch.setattr(mnist, "train", None)
    mnist.main([*arguments, "--seeds", "2"])


@pytest.mark.slow
def test_recipes(tmp_path, monkeypatch):
    chosen = ["mean field", "warm-up", "last layer"]
    arguments = ["--recipe", *chosen, "--steps", "2", "4", "--samples", "8"]
    arguments += ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]
    recipes.main(arguments)
    header, *rows = convergence(Store(tmp_path / "results").records("recipes"))
    assert header == ["recipe", "2 steps", "4 steps"]
    assert sorted(row[0] for row in rows) == sorted(chosen)
    monkeypatch.setattr(recipes.pp, "fit", None)
    recipes.main(arguments)  # Nothing is trained twice.


@pytest.mark.slow
def test_recipes_go_on_where_they_were_cut_off(tmp_path):
    def scores(folder, *calls):
        common = ["--recipe", "warm-up", "--samples", "8"]
        common += ["--results", str(folder / "results"), "--cache", str(folder / "cache")]
        for steps in calls:
            recipes.main([*common, "--steps", *steps])
        return [record["scores"] for record in Store(folder / "results").records("recipes")]

    assert scores(tmp_path / "twice", "2", "4") == scores(tmp_path / "once", ["2", "4"])


def test_a_recipes_cache_that_is_further_is_refused(tmp_path):
    common = ["--recipe", "mean field", "--samples", "8", "--cache", str(tmp_path / "cache")]
    recipes.main([*common, "--steps", "4", "--results", str(tmp_path / "some")])
    with pytest.raises(ValueError, match="has taken 4 steps, more than steps=2"):
        recipes.main([*common, "--steps", "2", "--results", str(tmp_path / "others")])


@pytest.mark.slow
def test_device(capsys, tmp_path):
    device.main(["--quick", "--steps", "1", "--results", str(tmp_path)])
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("cpu") or torch.accelerator.is_available()
    assert [row.strip() for row in rows if not row.startswith("  ")] == list(device.QUICK)
    steps_a_second = [float(row[28:38]) for row in rows if row.startswith("  ")]
    assert len(steps_a_second) == 5 and min(steps_a_second) > 0
    found = [r["scores"]["steps_per_second"] for r in Store(tmp_path).records("device")]
    assert sorted(found) == pytest.approx(sorted(steps_a_second), abs=0.05)


def test_the_table_of_devices(tmp_path):
    store, plain = Store(tmp_path), device.Measured(0.004, 80.0, Counter("ab"))
    for method, found in {
        "AutoNormal": plain,
        "permutations": device.Measured(0.005, 93.0, Counter("aab")),
    }.items():
        for checks in ("checked", "unchecked"):
            run = Run("device", "Some Card: 784-400-10", f"{method}, {checks}", 0)
            store.save(run, {}, device.scores(found, plain))
    page = results_devices.devices(store)
    assert "| 784-400-10 | AutoNormal | 250 | 250 |  | 80 | 2 |" in page
    assert "| 784-400-10 | permutations | 200 | 200 | 1.0 | 93 | 3 |" in page
    assert page.index("AutoNormal |") < page.index("permutations |")
    assert "Some Card" in page
