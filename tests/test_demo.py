"""The demo runs end to end, and what the README shows is what it does."""

import contextlib
import io
import re
import runpy
import sys
import warnings
from pathlib import Path

import arviz as az
import matplotlib.image
import pytest
import torch

from pyro_perm.demo import evaluation
from pyro_perm.demo.command_line import main
from pyro_perm.demo.data import load
from pyro_perm.demo.sources import SOURCES
from pyro_perm.demo.training import network

README = Path(__file__).parents[1] / "README.md"
SHAPES = {  # training and held-out points, inputs, classes
    "diabetes": (353, 89, 10, None),
    "wine": (142, 36, 13, 3),
    "digits": (1437, 360, 64, 10),
    "breast_cancer": (455, 114, 30, 2),
}


def run(folder, *options):
    """The table of a short run: few draws in the evaluation, but enough for Pareto smoothing."""
    table = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(table):
        patch.setattr(evaluation, "NUM_DRAWS", 30)
        patch.setattr(evaluation, "NUM_BOUND_SAMPLES", 20)
        torch.set_default_dtype(torch.float32)  # As it is where the demo runs alone.
        main(["--steps", "30", "--width", "6", "--output", str(folder), *options])
    return rows(table.getvalue())


def rows(table):
    """First cell -> the other cells, of a printed table."""
    cells = [re.split(r"\s{3,}", line) for line in table.splitlines()]
    return {name: figures for name, *figures in cells if figures}


@pytest.mark.parametrize("data", SOURCES)
def test_data_are_standardized_and_split_the_same_every_time(data):
    dataset = load(data)
    num_train, num_test, inputs, num_classes = SHAPES[data]
    assert dataset.train.x.shape == (num_train, inputs)
    assert dataset.test.x.shape == (num_test, inputs)
    assert dataset.train.y.shape == (num_train,)
    assert dataset.num_classes == num_classes
    torch.testing.assert_close(dataset.train.x.mean(0), torch.zeros(inputs))
    varying = dataset.train.x.std(0) > 0
    spread = dataset.train.x.std(0, correction=0)[varying]
    torch.testing.assert_close(spread, torch.ones_like(spread))
    assert torch.equal(load(data).test.x, dataset.test.x)


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    """The folder and the table of one run."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(folder)


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(folder, "--data", "wine")


@pytest.mark.slow
@pytest.mark.parametrize("data", ["diabetes", "wine"])
def test_demo_prints_its_table_and_saves_figure_and_posteriors(data, request):
    folder, table = request.getfixturevalue(data)
    error = "test error rate" if data == "wine" else "test RMSE, sd of the target"
    assert {
        "ELBO(q), nats",
        "ELBO(q^G), lower bound",
        "ELBO(q^G), upper bound",
        "I(g; w), lower bound",
        "I(g; w), upper bound",
        "log |G|",
        "test log-likelihood, nats a point",
        error,
        "seconds a step",
    } <= set(table)
    assert table["log |G|"] == ["6.6", "6.6"]  # log 6!
    pixels = matplotlib.image.imread(folder / f"{data}.png")
    assert pixels.shape[0] > 300
    assert pixels.std() > 0.05
    posteriors = {
        name: az.from_netcdf(folder / f"{data}_{name}.nc")
        for name in ("AutoNormal", "AutoSymmetrized")
    }
    for name, posterior in posteriors.items():
        bound, _, _ = table["ELBO(q^G), lower bound"][list(posteriors).index(name)].split()
        assert f"{posterior.attrs['elbo_lower']:.1f}" == bound
        assert posterior["posterior"].sizes["P0_unit"] == 6
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Pareto", UserWarning)
        warnings.filterwarnings("ignore", "The inplace keyword in DataFrame")  # ArviZ 0.23's own
        assert set(az.compare(posteriors).index) == set(posteriors)


@pytest.mark.slow
def test_figures_repeat_with_the_seed_but_for_the_time(diabetes, tmp_path):
    _, first = diabetes
    varying = ("seconds a step", "figure", "posterior")  # The latter two are paths.
    again, other = (run(tmp_path, "--seed", seed) for seed in ("0", "1"))
    first, again, other = (
        {row: figures for row, figures in table.items() if row not in varying}
        for table in (first, again, other)
    )
    assert first == again != other


@pytest.mark.parametrize("data", ["digits", "breast_cancer"])
def test_network_has_an_output_a_class(data):
    dataset = load(data)
    outputs = network(dataset, width=5).outputs(dataset.test.x)
    assert outputs.shape == (len(dataset.test.x), dataset.num_classes)


@pytest.mark.parametrize(
    "options",
    [
        ["--width", "0"],
        ["--steps", "-1"],
        ["--data", "mnist"],
        ["--seed", "-1"],
        ["--seed", str(2**32)],
        ["--output", f"{__file__}/folder"],
    ],
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert options[0] in capsys.readouterr().err


class NotInstalled:
    """A finder that knows of one package that it is not there."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture(params=["sklearn", "matplotlib"])
def missing(request, monkeypatch):
    """A package of the demo's that is not installed."""
    for name in list(sys.modules):
        ours = name.startswith("pyro_perm.demo") or name == "pyro_perm.__main__"
        if ours or name.split(".")[0] == request.param:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(request.param), *sys.meta_path])
    monkeypatch.setattr(sys, "argv", ["pyro_perm", "--steps", "1", "--width", "2"])
    return request.param


def test_missing_package_is_named_with_the_extra_that_has_it(missing):
    with pytest.raises(SystemExit, match=rf"needs {missing}: .*pyro_perm\[demo\]"):
        runpy.run_module("pyro_perm", run_name="__main__")


def test_help_needs_none_of_the_demos_packages(missing, capsys):
    sys.argv.append("--help")
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("pyro_perm", run_name="__main__")
    assert exit.value.code == 0
    assert "--data {diabetes,wine,digits,breast_cancer}" in capsys.readouterr().out


@pytest.mark.slow
def test_readme_example_prints_what_it_says(capsys):
    torch.set_default_dtype(torch.float32)
    text = README.read_text()
    example, *others = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert not others
    namespace = {}
    exec(example.replace("steps=3000", "steps=30, progress=False"), namespace)
    printed = capsys.readouterr().out.splitlines()
    shown = text.split(example)[1].split("```text\n")[1].split("```")[0].splitlines()
    number = r"-?\d+\.\d+"
    # What was skipped, and why, depends on the numbers.
    assert [re.split(number, line)[0].rstrip() for line in printed if "ELBO" in line] == [
        re.split(number, line)[0].rstrip() for line in shown if "ELBO" in line
    ]
    assert sum("ELBO" in line for line in shown) == 3


@pytest.mark.slow
def test_readme_shows_the_rows_that_the_demo_prints(diabetes):
    _, table = diabetes
    assert set(table) <= set(rows(README.read_text()))
