"""The demo's figure: which units the two guides use, and what they are certified to be worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_perm.demo.evaluation import Evaluation
from pyro_perm.demo.training import Fit

COLORS = {"AutoNormal": "#c44e52", "AutoSymmetrized": "#2f6db3"}


def save_figure(
    path: Path, title: str, fits: Mapping[str, Fit], evaluations: Mapping[str, Evaluation]
) -> None:
    """Draw the comparison of the guides, and save it as PNG."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    units, bounds = figure.subplots(1, 2)
    _draw_units(units, fits)
    _draw_bounds(bounds, evaluations)
    for axes in (units, bounds):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw_units(axes: Axes, fits: Mapping[str, Fit]) -> None:
    """Signal-to-noise ratio of every unit's outgoing weights, in descending order."""
    for name, fit in fits.items():
        ratios = np.sort(_signal_to_noise(fit))[::-1]
        label = f"{name}: {(ratios > 1).sum()} above 1"
        axes.semilogy(np.arange(1, len(ratios) + 1), ratios, ".-", color=COLORS[name], label=label)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylim(top=20 * axes.get_ylim()[1])
    axes.set(
        xlabel="hidden unit, sorted",
        ylabel="signal / noise",
        title="Outgoing weights: |mean| / sd",
    )
    axes.legend(frameon=False, loc="upper right", fontsize="small")


def _signal_to_noise(fit: Fit) -> NDArray[np.float64]:
    with torch.no_grad():
        low, middle, high = fit.guide.quantiles([0.1587, 0.5, 0.8413])["out.weight"]
    signal, noise = middle.norm(dim=0), (high - low).norm(dim=0) / 2
    ratios: NDArray[np.float64] = (signal / noise).double().numpy()
    return ratios


def _draw_bounds(axes: Axes, evaluations: Mapping[str, Evaluation]) -> None:
    """From ELBO(q) to the certified interval of ELBO(q^G), a standard error to either side."""
    for row, (name, evaluation) in enumerate(evaluations.items()):
        elbo, color = evaluation.elbo, COLORS[name]
        axes.plot([elbo.base, elbo.lower], [row, row], color=color, linewidth=1.2)
        axes.plot(elbo.base, row, "o", color=color, markerfacecolor="white", markersize=9)
        left = elbo.lower - elbo.lower_standard_error
        right = elbo.upper + elbo.upper_standard_error
        axes.barh(row, right - left, 0.12, left, color=color)
        axes.text(elbo.base, row + 0.14, f"{elbo.base:.0f} ", ha="right", color=color)
        axes.text(left, row + 0.14, f" {elbo.lower:.0f}", ha="left", color=color)
        axes.text((elbo.base + left) / 2, row - 0.24, name, ha="center", color=color)
    axes.set_yticks([])
    axes.set(xlabel="nats", title="ELBO($q$) ring, ELBO($q^G$) bar")
    axes.margins(x=0.2)
    axes.set_ylim(-0.6, len(evaluations) - 0.4)
