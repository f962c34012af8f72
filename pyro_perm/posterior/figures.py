"""Figures of posteriors, on Matplotlib in ArviZ's style.

Each function draws into the given axes, or into a new figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from numpy.typing import NDArray
from torch import Tensor

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.bounds.intervals import SymmetrizedELBO
from pyro_perm.posterior.comparison import Comparison
from pyro_perm.posterior.prediction import Prediction
from pyro_perm.training.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("arviz-white", "arviz-variat")  # Of ArviZ 0.x and 1.x.
_OVERLAPPING = 0.02
_MOST_UNITS_NAMED = 20


def plot_predictive_bands(
    x: Tensor,
    prediction: Prediction,
    observed: tuple[Tensor, Tensor] | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Predictive mean, and central predictive intervals, along one input.

    :param x: inputs, shape ``(N,)`` or ``(N, 1)``.
    :param prediction: of one output at these inputs.
    :param observed: inputs and targets of observations, to be shown as points.
    :param levels: probabilities of the intervals.
    :param label: of the mean, for a legend.
    :param color: of the mean and the intervals.
    :raises ValueError: if there is more than one input or output.
    """
    inputs = x.flatten()
    if prediction.mean.shape != inputs.shape:
        raise ValueError(
            f"needs one input and one output, but x has shape {tuple(x.shape)} and the predictive "
            f"mean {tuple(prediction.mean.shape)}"
        )
    ax = ax or _new_axes()
    order = inputs.argsort()
    (line,) = ax.plot(*_numpy(inputs[order], prediction.mean[order]), color=color, label=label)
    for level in sorted(levels, reverse=True):
        low, high = prediction.quantiles([0.5 - level / 2, 0.5 + level / 2])[:, order]
        where, bottom, top = _numpy(inputs[order], low, high)
        ax.fill_between(where, bottom, top, color=line.get_color(), alpha=0.2, linewidth=0)
    if observed is not None:
        ax.plot(*_numpy(*(value.flatten() for value in observed)), "k.", markersize=4)
    ax.set(xlabel="x", ylabel="y")
    return ax


def plot_exchangeable_units(
    samples: Mapping[str, Mapping[str, Tensor]],
    symmetry: PermutationSymmetry,
    site: str,
    *,
    units: tuple[int, int] = (0, 1),
    entry: int = 0,
    bins: int = 60,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Joint marginal of one weight of two units, side by side for several posteriors.

    The posterior, and a symmetrized one, are mirror images about the diagonal.

    :param samples: name of a posterior -> site -> draws, shape ``(draws, *site shape)``.
    :param symmetry: the group, bound to the model.
    :param site: a site that the group permutes.
    :param units: the two units, along the first axis of the site that some group permutes.
    :param entry: which of the weights that belong to a unit.
    :param bins: number of bins along each axis.
    :raises ValueError: if no group permutes the site, or there is no such unit or weight.
    """
    pairs = {name: _pair(draws, symmetry, site, units, entry) for name, draws in samples.items()}
    axes = axes or _new_axes(len(pairs))
    limit = max(float(np.quantile(np.abs(pair), 0.995)) for pair in pairs.values())
    edges = np.linspace(-limit, limit, bins + 1)
    for ax, (name, (first, second)) in zip(axes, pairs.items(), strict=True):
        ax.hist2d(first, second, bins=(edges, edges), density=True, cmap="Blues")
        ax.plot(edges, edges, color="0.6", linewidth=0.8, linestyle=":")
        ax.set(title=name, xlabel=f"{site}, unit {units[0]}", aspect="equal")
    axes[0].set_ylabel(f"{site}, unit {units[1]}")
    return list(axes)


def plot_information(
    steps: Sequence[int], elbos: Sequence[SymmetrizedELBO], *, ax: Axes | None = None
) -> Axes:
    """Certified interval for ``I(g; w)`` over training, against ``log |G|``.

    The interval is widened by a standard error on either side.

    :param steps: training steps.
    :param elbos: results of :func:`~pyro_perm.symmetrized_elbo` at these steps.
    """
    ax = ax or _new_axes()
    information = [elbo.mutual_information for elbo in elbos]
    lower = np.array([each.lower - each.lower_standard_error for each in information])
    upper = np.array([each.upper + each.upper_standard_error for each in information])
    (line,) = ax.plot(steps, lower, linewidth=1)
    ax.plot(steps, upper, color=line.get_color(), linewidth=1)
    ax.fill_between(
        steps, lower, upper, color=line.get_color(), alpha=0.3, label="$I(g; w)$, certified"
    )
    ax.axhline(information[0].log_order, color="0.3", linestyle="--", label=r"$\log |G|$")
    ax.set(xlabel="training step", ylabel="nats", ylim=(0, 1.08 * information[0].log_order))
    ax.legend()
    return ax


def plot_comparison(comparison: Comparison, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Differences of each score from that of the first guide, with their paired standard errors.

    :param comparison: of at least two guides.
    :param axes: one for each score.
    """
    others = comparison.guides[1:]
    axes = axes or _new_axes(len(comparison.integrands), sharex=False)
    for ax, name in zip(axes, comparison.integrands, strict=True):
        found = [comparison.difference(name, guide) for guide in others]
        values, errors = [d.value for d in found], [d.standard_error for d in found]
        ax.errorbar(values, range(len(others)), xerr=errors, fmt="o", capsize=3)
        ax.axvline(0.0, color="0.6", linewidth=0.8, linestyle=":")
        ax.set(xlabel=name, ylim=(-0.5, len(others) - 0.5))
    axes[0].set_yticks(range(len(others)), others)
    axes[0].set_title(f"differences from {comparison.guides[0]}", loc="left", fontsize="medium")
    return list(axes)


def plot_overlap(overlap: Tensor, *, ax: Axes | None = None) -> Axes:
    """The matrix of :func:`~pyro_perm.unit_overlap`, units that overlap side by side.

    Up to 20 units are named.

    :param overlap: of one group, shape ``(n, n)``.
    """
    ax = ax or _new_axes()
    matrix = overlap.detach().cpu().numpy()
    near = scipy.sparse.csr_array(matrix + matrix.T > _OVERLAPPING)
    order = scipy.sparse.csgraph.reverse_cuthill_mckee(near, symmetric_mode=True)
    image = ax.imshow(matrix[np.ix_(order, order)], vmin=0, vmax=1, cmap="Blues")
    colorbar = ax.figure.colorbar(image, ax=ax)
    colorbar.set_label("probability")
    shown = range(len(order) if len(order) <= _MOST_UNITS_NAMED else 0)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(shown, [str(order[row]) for row in shown], fontsize="small")
    ax.set(xlabel="unit of a draw", ylabel="factor of the guide")
    return ax


def plot_history(
    history: History,
    elbo: SymmetrizedELBO | None = None,
    *,
    memory: float = 100.0,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The ELBO during training, averaged over steps, and certified bounds on it at the end.

    The band of the bounds is widened by a standard error at either side. A vertical line marks the
    step whose parameters were kept.

    :param history: of :func:`pyro_perm.fit`.
    :param elbo: of the trained guide, from :func:`pyro_perm.symmetrized_elbo`.
    :param memory: steps in which the weights of the average fall by ``1/e``.
    :param label: of the line, for a legend.
    :raises ValueError: if no step was taken.
    """
    if not history.losses:
        raise ValueError("the history has no steps: there is nothing to draw")
    ax = ax or _new_axes()
    smoothed = history.smoothed_elbo(memory)
    (line,) = ax.plot(range(1, history.step + 1), smoothed, label=label)
    if history.best_step is not None:
        ax.axvline(history.best_step, color=line.get_color(), linestyle=":", linewidth=1)
    # The first steps are often far below all others.
    ends = smoothed[history.step // 20 :]
    if elbo is not None:
        band = elbo.lower - elbo.lower_standard_error, elbo.upper + elbo.upper_standard_error
        ax.axhspan(*band, color=line.get_color(), alpha=0.3)
        ends = [*ends, *band]
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    ax.set(xlabel="step", ylabel="ELBO (nats)", ylim=(min(ends) - margin, max(ends) + margin))
    return ax


def _new_axes(columns: int | None = None, *, sharex: bool = True) -> Any:
    """New axes, or a list of as many as there are columns, along one scale or each its own."""
    import arviz  # noqa: F401 (registers its styles)
    from matplotlib import pyplot, style

    with style.context([name for name in _STYLES if name in style.available]):
        size = (3.2 * columns, 3.4) if columns else (5.5, 3.8)
        _, axes = pyplot.subplots(
            1,
            columns or 1,
            figsize=size,
            squeeze=False,
            layout="constrained",
            sharex=bool(columns) and sharex,
            sharey=bool(columns),
        )
    return list(axes[0]) if columns else axes[0, 0]


def _numpy(*tensors: Tensor) -> list[NDArray[Any]]:
    return [tensor.detach().cpu().numpy() for tensor in tensors]


def _pair(
    samples: Mapping[str, Tensor],
    symmetry: PermutationSymmetry,
    site: str,
    units: tuple[int, int],
    entry: int,
) -> NDArray[Any]:
    """The weight of both units, shape ``(2, draws)``."""
    actions = symmetry.actions_on(site)
    if not actions:
        raise ValueError(f"no group permutes site '{site}'; the symmetry has {symmetry.sites}")
    entries = actions[0][1].units(samples[site], symmetry.site_rank(site))
    if not (max(units) < entries.shape[-2] and entry < entries.shape[-1]):
        raise ValueError(
            f"site '{site}' has {entries.shape[-2]} units of {entries.shape[-1]} weights: there "
            f"are no units {units} with a weight {entry}"
        )
    pair: NDArray[Any] = entries[:, list(units), entry].T.detach().cpu().numpy()
    return pair
