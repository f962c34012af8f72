"""Files of results: whole, found again, and never mixed up."""

import json

import pytest
from results_store import Mean, Run, Store

RUN = Run("uci", "wine-red", "InfoNCE (K = 32)", 3)


def test_a_run_is_found_again_with_its_settings(tmp_path):
    store, settings = Store(tmp_path), {"steps": 10, "rates": (0.1, 0.2)}
    assert not store.has(RUN, settings)
    path = store.save(RUN, settings, {"rmse": 0.123456789, "bounds": [1, 2.0]})
    assert store.has(RUN, settings)
    assert [*tmp_path.rglob("*")].count(path) == 1
    assert not [*tmp_path.rglob("*.part")]
    record = store.read(RUN)
    assert record["scores"] == {"rmse": 0.1234568, "bounds": [1, 2.0]}
    assert (record["method"], record["seed"]) == ("InfoNCE (K = 32)", 3)
    assert {"python", "torch", "pyro_perm", "commit"} <= record["versions"].keys()


def test_other_settings_are_refused_not_mixed(tmp_path):
    store = Store(tmp_path)
    store.save(RUN, {"steps": 10}, {})
    with pytest.raises(ValueError, match=r"03\.json was made with settings"):
        store.has(RUN, {"steps": 20})


def test_records_are_those_of_one_benchmark(tmp_path):
    store = Store(tmp_path)
    for seed in range(3):
        store.save(Run("uci", "yacht", "mean field", seed), {}, {"seed": seed})
    store.save(Run("pruning", "waves", "mean field", 0), {}, {})
    assert [record["scores"]["seed"] for record in store.records("uci")] == [0, 1, 2]
    assert store.records("nothing") == []


def test_files_hold_no_path_of_the_machine(tmp_path):
    path = Store(tmp_path).save(RUN, {}, {})
    assert str(tmp_path) not in json.dumps(json.loads(path.read_text()))


def test_means_have_standard_errors_of_runs():
    mean = Mean.of([1.0, 2.0, 3.0])
    assert mean.text(2) == "2.00 ± 0.58"
    assert Mean.of([1.0]).text(1) == "1.0"
