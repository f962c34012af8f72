"""The regression benchmark on a set of forty rows: every method, resumed, without a network."""

import argparse

import numpy as np
import pytest
import torch
import uci
from point_networks import train_points
from regression_data import load_rows, stack, standard_splits, validation_split
from stacked_network import Layout
from stacked_objectives import METHODS
from stacked_training import of_all_rows, train


@pytest.fixture
def folder(tmp_path):
    source = np.random.default_rng(0)
    x = source.normal(size=(40, 2))
    y = 30 + 5 * np.abs(x[:, :1]) + 0.1 * source.normal(size=(40, 1))
    np.savetxt(tmp_path / "yacht.txt", np.hstack([x, y]))
    return tmp_path


def options(folder, **others):
    arguments = ["--set", "yacht", "--data-dir", str(folder), "--results", str(folder / "results")]
    arguments += ["--cache", str(folder / "cache"), "--splits", "2", "--steps", "4"]
    options = uci.options_of([*arguments, "--draws", "20", "--units", "4"])
    return argparse.Namespace(**{**vars(options), **others})


def test_splits_are_the_fields_own():
    """The first test rows of yacht's first split, as in the public benchmark files."""
    splits = standard_splits(308)
    assert [len(rows) for rows in splits[0]] == [277, 31]
    source = np.random.RandomState(1)
    source.permutation(308)
    assert sorted(np.concatenate(splits[1])) == [*range(308)]
    train_rows, held_out = validation_split(splits[0][0])
    assert not set(held_out) & set(splits[0][1])
    assert sorted([*train_rows, *held_out]) == sorted(splits[0][0])


def test_rows_are_scored_in_the_target_s_units(folder):
    rows = load_rows("yacht", folder)
    data = stack(rows, standard_splits(len(rows), 3))
    torch.testing.assert_close(data.y.mean(-1), torch.zeros(3), atol=1e-5, rtol=0)
    train_rows, test_rows = standard_splits(len(rows), 3)[1]
    target = data.test_y[1] * data.unit[1] + rows[train_rows, -1].mean()
    np.testing.assert_allclose(target, rows[test_rows, -1], rtol=1e-4)


def test_data_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="give --data-dir its folder"):
        load_rows("concrete", tmp_path)


@pytest.mark.parametrize("method", [*METHODS, "deep ensemble", "MC dropout"])
def test_every_method_writes_a_file_a_split_and_does_not_repeat_itself(folder, method, monkeypatch):
    benchmark = uci.Benchmark("yacht", options(folder))
    benchmark.run(method)
    records = [r for r in benchmark.store.records("uci") if r["method"] == method]
    assert [record["seed"] for record in records] == [0, 1]
    scores = records[0]["scores"]
    assert np.isfinite([scores["log_likelihood"], scores["rmse"], scores["seconds"]]).all()
    if method in METHODS:
        assert scores["bounds"].keys() == {"mean field", "permutations", "scales"} | {
            "permutations and scales"
        }
    monkeypatch.setattr(uci, "train", None)
    monkeypatch.setattr(uci, "train_points", None)
    benchmark.run(method)


def test_a_run_does_not_depend_on_what_shares_its_stack(folder):
    benchmark = uci.Benchmark("yacht", options(folder))
    layout, rows = benchmark.layout, benchmark.rows
    data = stack(rows, benchmark.splits[:3])

    def trained(runs):
        some = data.take(torch.tensor(runs))
        rates = torch.full((len(runs),), 0.01)
        return train(
            layout,
            METHODS["permutations"](),
            of_all_rows(layout, some.x, some.y),
            seeds=runs,
            prior_scale=torch.ones(len(runs)),
            learning_rate=rates,
            num_steps=20,
        )

    torch.testing.assert_close(trained([0, 1, 2]).loc[2], trained([2]).loc[0], atol=1e-5, rtol=1e-4)


def test_an_interrupted_stack_goes_on_as_if_nothing_had_been(folder, monkeypatch):
    for name in ("_STEPS_PER_CHECKPOINT", "_STEPS_PER_RECORD"):
        monkeypatch.setattr(f"stacked_training.{name}", 10)
    benchmark = uci.Benchmark("yacht", options(folder))
    data = stack(benchmark.rows, benchmark.splits[:2])

    def trained(num_steps, checkpoint, share=None):
        if share:  # The learning rate's path is that of the whole training.
            monkeypatch.setattr("stacked_training.learning_share", lambda step, _: share)
        return train(
            benchmark.layout,
            METHODS["InfoNCE (K = 32)"](),
            of_all_rows(benchmark.layout, data.x, data.y),
            seeds=[0, 1],
            prior_scale=torch.ones(2),
            learning_rate=torch.full((2,), 0.01),
            num_steps=num_steps,
            checkpoint=checkpoint,
        )

    at_once = trained(30, None, share=1.0)
    trained(20, folder / "state.pt", share=1.0)
    resumed = trained(30, folder / "state.pt", share=1.0)
    torch.testing.assert_close(resumed.loc, at_once.loc)
    torch.testing.assert_close(resumed.scale, at_once.scale)


def test_point_networks_find_the_mode_of_a_linear_target():
    """With a wide prior, the fit of a straight line and its noise."""
    layout = Layout(1, 4)
    source = torch.Generator().manual_seed(0)
    x = torch.randn(1, 200, 1, generator=source)
    noise = 0.1 * torch.randn(1, 200, generator=source)
    data = argparse.Namespace(x=x, y=x[..., 0] + noise)
    weights, _ = train_points(
        layout,
        data,
        seeds=[0],
        prior_scale=torch.tensor([10.0]),
        learning_rate=torch.tensor([0.02]),
        num_steps=1500,
    )
    assert weights[0, -1].exp().item() == pytest.approx(0.1, rel=0.15)
