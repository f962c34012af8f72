"""Networks of torch.nn in benchmarks: a file each, run once, and their sections of the page."""

import sys
from pathlib import Path

import laplace_width
import modules
import pytest
import torch
from results_store import Run, Store

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import results_networks


def test_networks_are_run_once_each_in_a_process_of_its_own(tmp_path, monkeypatch):
    arguments = ["gpt", "--results", str(tmp_path)]
    modules.main(arguments)
    (record,) = Store(tmp_path).records("modules")
    assert record["scores"]["groups"] == {"4": 3, "8": 3, "32": 1, "128": 3}
    assert record["scores"]["change"] < modules.TOLERANCE
    monkeypatch.setattr(modules, "run_alone", None)
    modules.main(arguments)
    page = results_networks.modules(Store(tmp_path))
    assert "| gpt | own input | 0.04 | 10 | 452 |" in page
    assert "0 of torchvision's 80 classifiers" in page


def hungry(name, size, device):
    return {"parameters": torch.ones(2**28).numel()}


def forever(name, size, device):
    while True:
        pass


@pytest.mark.parametrize(
    ("limits", "scores", "failure"),
    [
        (modules.Limits(3600, 0.001), hungry, "needs more than 0.001 GiB"),
        (modules.Limits(1, 14.0), forever, "needs more than 1 seconds"),
    ],
)
def test_what_goes_beyond_a_limit_is_named_and_tried_again(
    tmp_path, monkeypatch, limits, scores, failure
):
    monkeypatch.setattr(modules, "scores", scores)
    found = modules.run_alone("vit", None, limits)
    assert found == {"failure": failure}
    store, run = Store(tmp_path), modules.the_run("vit", None)
    store.save(run, {}, found)
    assert not modules.is_done(store, run)
    assert f"Not done: vit ({failure})." in results_networks._failures(store.records("modules"))


def quick(name, size, device):
    return {"size": size}


def stuck_on_vit(name, size, device):
    return forever(name, size, device) if name == "vit" else quick(name, size, device)


def small_task(name, gibibytes=1.0):
    return modules.Task(name, None, gibibytes)


def test_several_workers_find_the_same_as_one(tmp_path):
    for folder, workers in (("one", 1), ("two", 2)):
        arguments = ["gpt", "vit", "--results", str(tmp_path / folder)]
        modules.main([*arguments, "--workers", str(workers)])
    one, two = (Store(tmp_path / folder).records("modules") for folder in ("one", "two"))
    assert len(one) == 2
    for record in (*one, *two):
        del record["scores"]["seconds"], record["scores"]["change"]
    assert one == two


def test_what_the_time_for_all_cuts_off_is_left_for_the_next_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(modules, "scores", stuck_on_vit)
    arguments = ["vit", "gpt", "unet", "--results", str(tmp_path), "--workers", "2"]
    modules.main([*arguments, "--total-seconds", "2"])
    assert {record["data"] for record in Store(tmp_path).records("modules")} == {"gpt", "unet"}
    assert "not finished: vit" in capsys.readouterr().out
    monkeypatch.setattr(modules, "scores", quick)
    modules.main(arguments)
    assert len(Store(tmp_path).records("modules")) == 3


def test_networks_side_by_side_fit_into_memory():
    waiting = [small_task("a", 6.0), small_task("b", 6.0), small_task("c", 3.0), small_task("d")]
    resources = modules.Resources(workers=3, gibibytes=10.0)
    chosen = modules._next_tasks(waiting, [], resources)
    assert [task.name for task in chosen] == ["a", "c", "d"]
    assert not modules._next_tasks(waiting[1:2], chosen, resources)
    huge = small_task("huge", 20.0)
    assert modules._next_tasks([huge], [], resources) == [huge]
    assert not modules._next_tasks([huge], chosen[2:], resources)


def test_several_workers_begin_with_the_largest(monkeypatch):
    sizes = {"vgg16": 10**8, "gpt": 0, "squeezenet1_1": 10**6}
    monkeypatch.setattr(modules, "num_parameters", sizes.__getitem__)
    for workers, names in (
        (1, ["gpt", "squeezenet1_1", "vgg16"]),
        (2, ["vgg16", "squeezenet1_1", "gpt"]),
    ):
        tasks = modules.tasks_in_order(list(sizes), False, modules.Resources(workers))
        assert [task.name for task in tasks] == names


def test_a_change_of_outputs_is_an_error(monkeypatch):
    monkeypatch.setattr(modules, "largest_change", lambda *_: 1e-9)
    with pytest.raises(ValueError, match=r"outputs change by 1\.0e-09"):
        modules.scores("vit", None)


def test_images_are_as_small_as_networks_take():
    assert modules.image_size("resnet18", full_size=False) == 64
    assert modules.image_size("maxvit_t", full_size=False) == 224
    assert modules.image_size("resnet18", full_size=True) == 224
    assert modules.image_size("gpt", full_size=True) is None


def test_networks_on_larger_images_are_compared_not_listed(tmp_path):
    store = Store(tmp_path)
    for pixels, sizes in ((64, {"8": 2}), (224, {"8": 2})):
        scores = {"parameters": 1e6, "groups": sizes, "log_order": 21.0, "seconds": 1.0}
        scores |= {"change": 1e-15, "not found": []}
        store.save(Run("modules", "resnet18", f"{pixels} pixels", 0), {}, scores)
    page = results_networks.modules(store)
    assert page.count("| resnet18 |") == 1
    assert "On images of 224 pixels the groups are the same: resnet18." in page


def test_the_width_that_each_evidence_picks(tmp_path):
    store = Store(tmp_path)
    for width, laplace, lower in ((1, -3.0, -3.0), (2, -4.0, -2.5)):
        scores = {"laplace": laplace, "lower": lower, "upper": lower, "log_order": 0.5}
        scores |= {"annealed": lower, "annealed_error": 0.1}
        store.save(Run("laplace-width", "15 points", f"{width} units", 0), {}, scores)
    page = results_networks.laplace_width(store)
    assert "| 2 | -4.0 | [-2.5, -2.5] | 0.5 | -2.5 ± 0.1 |" in page
    assert "Laplace's evidence 1 units, that with `I` 2 units" in page


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_widths_are_run_once(tmp_path, monkeypatch):
    arguments = ["--results", str(tmp_path), "--widths", "1", "--num-starts", "1"]
    arguments += ["--num-particles", "2", "--num-temperatures", "2"]
    laplace_width.main(arguments)
    (record,) = Store(tmp_path).records("laplace-width")
    assert record["scores"]["lower"] == record["scores"]["laplace"]
    assert torch.isfinite(torch.tensor(list(record["scores"].values()))).all()
    monkeypatch.setattr(laplace_width, "scores", None)
    laplace_width.main(arguments)
