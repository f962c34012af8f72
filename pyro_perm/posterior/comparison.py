"""Guides compared on the same draws and the same held-out data, difference by difference.

The scores of two guides share most of their noise: that of the draws, where both guides see the
same random numbers, and that of the held-out observations. A difference, draw by draw or
observation by observation, is free of it, and its standard error is that of what remains.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.estimators import Estimator
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.bounds._table import columns
from pyro_perm.posterior.bounds.draws import standard_error
from pyro_perm.posterior.bounds.intervals import REMARK_ON_SCALES, certified_elbo
from pyro_perm.posterior.executors import evaluate_each
from pyro_perm.posterior.prediction import Prediction, observed_values, predict
from pyro_perm.posterior.whose_symmetry import action_of, largest_symmetry
from pyro_perm.program._pyro_internals import named_owners
from pyro_perm.program.batches import Data
from pyro_perm.program.call import refuse_shared_keywords
from pyro_perm.program.modules import pyro_modules_among
from pyro_perm.program.restoration import restored
from pyro_perm.sampling import set_up
from pyro_perm.symmetry import SymmetryGroup

_BASE = "ELBO(q)"

Guide = Callable[..., Any]


class Score(NamedTuple):
    """A score of a guide, and its standard error.

    Attributes:
        value: the score, or the difference of two.
        standard_error: of it.
    """

    value: float
    standard_error: float


@dataclass(frozen=True, repr=False)
class Comparison:
    """Scores of several guides. Prints as a table of them, and of their paired differences.

    Attributes:
        guides: names of the guides; differences are from the first one.
        integrands: score -> what it is the average of, for each guide: shape ``(guides, n)``. For
            the bounds ``n`` are the draws, for held-out scores the observations.
        groups: the group that the bounds of each guide are over. The table has their ``log |G|``,
            without scales, and says which differences are between bounds over unlike groups.
    """

    guides: tuple[str, ...]
    integrands: dict[str, Tensor]
    groups: tuple[SymmetryGroup, ...]

    def score(self, name: str, guide: str) -> Score:
        """The score of a guide.

        :param name: one of :attr:`integrands`.
        :param guide: one of :attr:`guides`.
        """
        return _score(self._of(name, guide))

    def difference(self, name: str, guide: str, reference: str | None = None) -> Score:
        """By how much the score of a guide exceeds that of another, with a paired standard error.

        :param name: one of :attr:`integrands`.
        :param guide: one of :attr:`guides`.
        :param reference: another one, by default the first.
        """
        return _score(self._of(name, guide) - self._of(name, reference or self.guides[0]))

    def __repr__(self) -> str:
        others = self.guides[1:]
        orders = [
            f"{group.log_compact_order:.2f}{' and scales' if group.open_groups else ''}"
            for group in self.groups
        ]
        first, *rest = map(action_of, self.groups)
        orders += ["" if action == first else "unlike groups" for action in rest]
        differences = [f"{other} - {self.guides[0]}" for other in others]
        rows = [["", *self.guides, *differences, ""], ["log |G|", *orders, ""]]
        for name in self.integrands:
            scores = [self.score(name, guide) for guide in self.guides]
            scores += [self.difference(name, guide) for guide in others]
            figures = (f"{s.value:.4g} +- {s.standard_error:.2g}" for s in scores)
            drifts = name == _BASE and any(group.open_groups for group in self.groups)
            rows.append([name, *figures, REMARK_ON_SCALES if drifts else ""])
        return "\n".join(columns(rows))

    def _of(self, name: str, guide: str) -> Tensor:
        if name not in self.integrands or guide not in self.guides:
            raise ValueError(
                f"there is no '{name}' of '{guide}': the scores are {list(self.integrands)}, the "
                f"guides {list(self.guides)}"
            )
        return self.integrands[name][self.guides.index(guide)]


@refuse_shared_keywords
def compare(
    model: Callable[..., Any],
    guides: Mapping[str, Guide],
    *args: Any,
    held_out: Sequence[Any] | None = None,
    num_samples: int = 64,
    num_predictive_samples: int = 1000,
    estimator: Estimator | None = None,
    symmetry: PermutationSymmetry | None = None,
    max_seconds: float | None = None,
    site: str | None = None,
    executor: Executor | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Comparison:
    """Compare trained guides of one model: certified bounds, and scores of held-out predictions.

    Guides of one kind, symmetrized or not, see the same random numbers, so that the difference of
    their scores has less noise than either score. A symmetrized guide draws from its base, whose
    predictions and bounds are the same.

    Bounds on ``ELBO(q^G)`` are over the group of the guide, be it only permutations or scales too.
    The order of the guides changes none of them.

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal, init_to_value
    >>> import pyro_perm as pp
    >>> def model():
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([3]).to_event(1))
    ...     pyro.sample("y", pyro.distributions.Normal(w.sum(), 1.0), obs=torch.tensor(0.5))
    >>> def guide(scale):
    ...     with pyro.settings.context(module_local_params=True):
    ...         locs = init_to_value(values={"w": torch.tensor([-1.0, 0.0, 1.0])})
    ...         trained = AutoNormal(model, init_loc_fn=locs, init_scale=scale)
    ...         trained()
    ...     return trained
    >>> with pyro.settings.context(module_local_params=True):
    ...     compared = pp.compare(model, {"wide": guide(0.5), "narrow": guide(0.1)}, progress=False)
    >>> list(compared.integrands)
    ['ELBO(q)', 'ELBO(q^G), lower bound', 'ELBO(q^G), upper bound']
    >>> better, error = compared.difference("ELBO(q)", "narrow")
    >>> better < 0 < error
    True

    :param model: the model.
    :param guides: name -> guide, at least two, each an :class:`AutoSymmetrized` or another that
        :func:`symmetrized_elbo` takes. The first is what the others are compared with.
    :param args: arguments of the model, as :func:`symmetrized_elbo` takes them: a loader too;
        ``kwargs`` likewise.
    :param held_out: arguments of the model with held-out observations. By default there are no
        predictive scores.
    :param num_samples: number of draws for the bounds, at least 4.
    :param num_predictive_samples: number of draws for the predictions.
    :param estimator: one method in place of the portfolio: see :func:`mutual_information`.
    :param symmetry: the group, for guides that are not symmetrized; by default the largest of those
        of the guides that are, or else the one found in the model. The largest one rescales most
        units, and among those that rescale as many its ``log |G|`` is the largest.
    :param max_seconds: about how long the bounds of a guide may take.
    :param site: the observed site that is predicted, where the model has several.
    :param executor: evaluates each guide in a process of its own: a ``ProcessPoolExecutor``, Dask's
        ``client.get_executor()``, MPI's or another. The numbers are those of this process. Model
        and arguments are pickled, guides are sent as :func:`save` writes them, and what is lost
        with a worker is evaluated here, with a warning.
    :param progress: whether to show progress bars.
    :returns: scores in nats: ``ELBO(q)``, bounds on ``ELBO(q^G)``, and with ``held_out`` the log
        predictive density an observation, and the error: the root mean squared error, or for a
        categorical site accuracy and Brier score. Errors of held-out scores are over observations.
    :raises ValueError: as :func:`symmetrized_elbo` and :func:`predict`; if there are fewer than two
        guides; if two of them go by the same parameters of Pyro's param store, or would from their
        next call on, though they are not made of one guide, as a base and its symmetrization are;
        if several unlike groups are the largest, and a guide is not symmetrized;
        if held-out observations have no log-likelihood each, as where they lie in no plate;
        if the executor works in this process.
    :raises TypeError: if a guide cannot be symmetrized, or not sent, or ``held_out`` is no tuple.
    """
    if not isinstance(guides, Mapping) or len(guides) < 2:
        raise ValueError("give at least two guides, by name: compare(model, {name: guide, ...})")
    if isinstance(held_out, str) or not isinstance(held_out, Sequence | None):
        raise TypeError(
            "held_out is a tuple of arguments of the model, observations included, such as "
            f"held_out=(x, y), but is a {type(held_out).__name__}"
        )
    data = Data.of(model, args, kwargs)
    for guide in guides.values():
        _set_up(model, guide, data)
    _require_own_parameters(guides)
    if symmetry is None and not all(isinstance(g, AutoSymmetrized) for g in guides.values()):
        symmetry = largest_symmetry(guides)
    options = {
        "args": args,
        "kwargs": kwargs,
        "held_out": held_out,
        "num_samples": num_samples,
        "num_predictive_samples": num_predictive_samples,
        "estimator": estimator,
        "symmetry": symmetry,
        "max_seconds": max_seconds,
        "site": site,
        "progress": progress,
    }
    cases = [(model, guide) for guide in guides.values()]
    each = evaluate_each(_scores, cases, executor=executor, **options)
    integrands = {
        name: torch.stack([scores.integrands[name] for scores in each])
        for name in each[0].integrands
    }
    return Comparison(tuple(guides), integrands, tuple(scores.group for scores in each))


class _Scores(NamedTuple):
    """Of one guide: the group that its bounds are over, and score -> what it is the average of."""

    group: SymmetryGroup
    integrands: dict[str, Tensor]


def _scores(
    model: Callable[..., Any],
    guide: Guide,
    *,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    held_out: Sequence[Any] | None,
    num_samples: int,
    num_predictive_samples: int,
    estimator: Estimator | None,
    symmetry: PermutationSymmetry | None,
    max_seconds: float | None,
    site: str | None,
    progress: bool,
) -> _Scores:
    # First, so that what is missing is missed before the bounds take their time.
    y = None if held_out is None else observed_values(model, *held_out, site=site)
    of_itself = isinstance(guide, AutoSymmetrized)
    base = guide.base if isinstance(guide, AutoSymmetrized) else guide
    elbo = certified_elbo(
        model,
        guide,
        Data.of(model, args, kwargs),
        num_samples=num_samples,
        estimator=estimator,
        symmetry=None if of_itself else symmetry,
        max_seconds=max_seconds,
        progress=progress,
        draws_from=base,
    )
    integrands = {
        _BASE: elbo.base,
        "ELBO(q^G), lower bound": elbo.lower,
        "ELBO(q^G), upper bound": elbo.upper,
    }
    if held_out is not None and y is not None:
        prediction = predict(
            model,
            base,
            *held_out,
            num_samples=num_predictive_samples,
            site=site,
            progress=progress,
        )
        integrands |= _held_out_scores(prediction, y)
    return _Scores(elbo.group, integrands)


def _set_up(model: Callable[..., Any], guide: Guide, data: Data) -> None:
    """Let a guide that was never called find its parameters, and what it is symmetrized over."""
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        arguments = data.loader, data.inputs.args, data.inputs.kwargs
        with restored(model, guide, *arguments) as writes, writes:
            set_up(data.call(guide))


def _require_own_parameters(guides: Mapping[str, Guide]) -> None:
    """Refuse guides that have taken over the parameters of another one, or will at the next call.

    Guides that have a module in common, as a base and its symmetrization do, share what is its.
    """
    if pyro.settings.get("module_local_params"):
        return
    stored = dict(pyro.get_param_store().named_parameters())
    owners: dict[str, tuple[str, Any]] = {}
    for guide, program in guides.items():
        modules = pyro_modules_among(program)
        for name, value, part in itertools.chain.from_iterable(map(named_owners, modules)):
            other, owner = owners.setdefault(name, (guide, part))
            if stored.get(name, value) is not value:
                what = f"has other values for the parameters of guide '{guide}'"
            elif owner is not part:
                what = f"has one '{name}' for the guides '{other}' and '{guide}'"
            else:
                continue
            raise ValueError(
                f"Pyro's param store {what}, as guides of one class have the same names there, so "
                "that the two would be compared as one: train and compare them under "
                "pyro.settings.set(module_local_params=True)"
            )


def _held_out_scores(prediction: Prediction, y: Tensor) -> dict[str, Tensor]:
    """Score -> what it is the average of, one number an observation."""
    if prediction.log_likelihood is None or prediction.log_likelihood.dim() < 2:
        raise ValueError(
            "held-out scores are averages over observations, and these have no log-likelihood "
            "each: let the model observe them in a plate, with pyro.plate('data', N): "
            "pyro.sample(...), in place of to_event"
        )
    density = prediction.log_predictive_density
    scores = {"held-out log-density": density.reshape(len(density), -1).sum(-1)}
    if prediction.means.dim() == prediction.draws.dim() + 1:
        probabilities = prediction.mean
        one_hot = torch.nn.functional.one_hot(y.long(), probabilities.shape[-1])
        scores["accuracy"] = (probabilities.argmax(-1) == y).double().flatten()
        scores["Brier score"] = (probabilities - one_hot).square().sum(-1).flatten()
    else:
        scores["RMSE"] = _pseudo_values((prediction.mean - y).square().flatten().double())
    return {name: values.double().cpu() for name, values in scores.items()}


def _pseudo_values(squares: Tensor) -> Tensor:
    """Numbers whose average is the root of the mean, and spread that of its delta method."""
    root = squares.mean().sqrt()
    return root + (squares - squares.mean()) / (2 * root.clamp_min(1e-300))


def _score(values: Tensor) -> Score:
    return Score(values.mean().item(), standard_error(values))
