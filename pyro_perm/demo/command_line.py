"""The demo's main program: two guides, one data set, a table, a figure and ArviZ files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyro
import torch

import pyro_perm as pp
from pyro_perm.demo.data import SOURCES, Dataset, load
from pyro_perm.demo.evaluation import evaluate
from pyro_perm.demo.figure import save_figure
from pyro_perm.demo.report import table
from pyro_perm.demo.training import Fit, fit, mean_field, network, symmetrized


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo.

    :param arguments: of the command line; None reads them from there.
    """
    options = _parser().parse_args(arguments)
    # Matrices this small gain nothing from a second thread, and lose on a busy machine.
    torch.set_num_threads(1)
    dataset = load(options.data)
    width = options.width or SOURCES[options.data].width
    print(
        f"{dataset.name}: {len(dataset.train.x)} training and {len(dataset.test.x)} held-out "
        f"points, {dataset.train.x.shape[-1]} inputs, one hidden layer of {width} units"
    )
    # Two guides of one class would share their parameters in the global store.
    with pyro.settings.context(module_local_params=True):
        fits = _train(dataset, width, options.steps, options.seed)
        evaluations = {name: evaluate(f, dataset, options.seed) for name, f in fits.items()}
    error = "test RMSE, sd of the target" if dataset.num_classes is None else "test error rate"
    print(f"\n{table(fits, evaluations, error)}\n")

    options.output.mkdir(parents=True, exist_ok=True)
    figure = options.output / f"{dataset.name}.png"
    title = f"{dataset.name}, one hidden layer of {width} units"
    save_figure(figure, title, fits, evaluations)
    print(f"figure      {figure}")
    for name, evaluation in evaluations.items():
        path = options.output / f"{dataset.name}_{name}.nc"
        evaluation.arviz.to_netcdf(path)
        print(f"posterior   {path}")


def _train(dataset: Dataset, width: int, steps: int, seed: int) -> dict[str, Fit]:
    """Both guides from the same initial values."""
    fits = {}
    for guide_of in (mean_field, symmetrized):
        model = network(dataset, width)
        guide = guide_of(model)
        fits[type(guide).__name__] = fit(model, guide, dataset, steps, seed)
    return fits


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyro_perm",
        description="Fit a Bayesian neural network with AutoNormal and with AutoSymmetrized.",
    )
    add = parser.add_argument
    add("--data", choices=SOURCES, default="diabetes", help="data set; %(default)s")
    add("--width", type=_positive, help="hidden units; 100 for digits, 50 otherwise")
    add("--steps", type=_positive, default=4000, help="training steps a guide; %(default)s")
    add("--seed", type=int, default=0, help="of initial values and draws; %(default)s")
    add("--output", type=Path, default=Path("pyro_perm_output"), help="folder; %(default)s")
    add("--version", action="version", version=pp.__version__)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {value}")
    return value
