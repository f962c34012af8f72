"""Networks of torch.nn in benchmarks: a file each, run once, and their sections of the page."""

import sys
import time
from collections import Counter
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
    assert "| torch parts | gpt | 0.04 | 10 | 452 |" in results_networks.coverage(Store(tmp_path))
    assert "0 of torchvision's 80 classifiers" in results_networks.modules(Store(tmp_path))


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
    if name == "vit":
        time.sleep(3600)
    return quick(name, size, device)


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
    modules.main([*arguments, "--total-seconds", "1"])
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
    page = results_networks.coverage(store)
    assert page.count("| resnet18 |") == 1
    assert "On images of 224 pixels the groups are the same: resnet18." in page


def test_networks_are_listed_by_family_with_what_they_ran_on(tmp_path):
    store = Store(tmp_path)
    reason = "indexed by aten.index (swin_transformer.py:7) (2 axes)"
    for name, pixels, parameters in (
        *(("swin_v2_t", 64, 3e6), ("wide_resnet50_2", 64, 2e6), ("swin_t", 96, 3e6)),
        *(("resnet50", 64, 2e6), ("resnet18", 64, 1e6)),
    ):
        scores = {"parameters": parameters, "groups": {"8": 2}, "log_order": 21.0, "seconds": 1.0}
        scores |= {"change": 1e-15, "not found": [reason] * name.startswith("swin")}
        store.save(Run("modules", name, f"{pixels} pixels", 0), {}, scores)
    page = results_networks.coverage(store)
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        ["| resnet", "resnet18"],
        ["| ", "resnet50"],
        ["| swin", "swin_t"],
        ["| swin_v2", "swin_v2_t"],
        ["| wide_resnet", "wide_resnet50_2"],
    ]
    assert "| indexed by aten.index |" in page
    assert "Images have 64 pixels a side, but 96 for swin_t." in page
    assert f"torch {torch.__version__}" in page and "(5 networks)" in page


def test_what_is_not_found_is_said_once_in_short():
    tied, why = "tied to dim 3 of buffer ", ", which is not a latent site"
    reasons = [f"{tied}'features.{k}.table'{why} (m.py:7) ({k} axes)" for k in range(3)]
    short = f"{tied}'table'{why}"
    assert {results_networks._in_short(reason) for reason in reasons} == {short}


def following_the_channels(widths, repeats=(4, 8, 4)):
    """Sizes of classes of a ShuffleNet's channels that one layer makes and the same consume."""
    stem, *stages, last = widths
    layers, labels, consumers = Counter({last: 1}), [("stem", i) for i in range(stem)], {}

    def consume(channels, layer):
        for channel in channels:
            consumers.setdefault(channel, []).append(layer)

    for stage, (width, number) in enumerate(zip(stages, repeats, strict=True)):
        half = width // 2
        for unit in range(number):
            if unit == 0:
                consume(labels, (stage, unit, "branch 1"))
                consume(labels, (stage, unit, "branch 2"))
                passing = [((stage, unit, "branch 1"), i) for i in range(half)]
            else:
                passing = labels[:half]
                consume(labels[half:], (stage, unit, "branch 2"))
            made = [((stage, unit, "branch 2"), i) for i in range(half)]
            layers[half] += 1  # inside of the second branch
            labels = [channel for pair in zip(passing, made, strict=True) for channel in pair]
    consume(labels, "last")
    classes = Counter((channel[0], *layers) for channel, layers in consumers.items())
    return layers + Counter(size for size in classes.values() if size > 1)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("shufflenet_v2_x0_5", (24, 48, 96, 192, 1024)),
        ("shufflenet_v2_x1_0", (24, 116, 232, 464, 1024)),
        ("shufflenet_v2_x1_5", (24, 176, 352, 704, 1024)),
        ("shufflenet_v2_x2_0", (24, 244, 488, 976, 2048)),
    ],
)
def test_what_was_found_in_shufflenets_is_all_there_is(name, widths):
    (found,) = (record["scores"] for record in Store().records("modules") if record["data"] == name)
    expected = following_the_channels(widths)
    assert {int(size): number for size, number in found["groups"].items()} == expected
    assert found["not found"] == [] and found["change"] < modules.TOLERANCE


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
