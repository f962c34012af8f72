"""Two guides, one data set, a table, a figure and ArviZ files."""

from __future__ import annotations

from pathlib import Path

import pyro
import torch

from pyro_perm.demo.data import Dataset, load
from pyro_perm.demo.evaluation import evaluate
from pyro_perm.demo.figure import save_figure
from pyro_perm.demo.report import table
from pyro_perm.demo.training import Fit, fit, mean_field, network, symmetrized


def compare(data: str, *, width: int, steps: int, seed: int, output: Path) -> None:
    """Train both guides, print what they are worth, and save figure and posteriors.

    :param data: name of the data set, one of ``SOURCES``.
    :param width: number of hidden units.
    :param steps: training steps a guide.
    :param seed: of initial values and draws.
    :param output: folder of the files, which exists.
    """
    # Matrices this small gain nothing from a second thread, and lose on a busy machine.
    torch.set_num_threads(1)
    dataset = load(data)
    print(
        f"{dataset.name}: {len(dataset.train.x)} training and {len(dataset.test.x)} held-out "
        f"points, {dataset.train.x.shape[-1]} inputs, one hidden layer of {width} units"
    )
    # Two guides of one class would share their parameters in the global store.
    with pyro.settings.context(module_local_params=True):
        fits = _train(dataset, width, steps, seed)
        evaluations = {name: evaluate(f, dataset, seed) for name, f in fits.items()}
    error = "test RMSE, sd of the target" if dataset.num_classes is None else "test error rate"
    print(f"\n{table(fits, evaluations, error)}\n")

    figure = output / f"{dataset.name}.png"
    title = f"{dataset.name}, one hidden layer of {width} units"
    save_figure(figure, title, fits, evaluations)
    print(f"figure      {figure}")
    for name, evaluation in evaluations.items():
        path = output / f"{dataset.name}_{name}.nc"
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
