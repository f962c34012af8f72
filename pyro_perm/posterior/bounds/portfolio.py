r"""Which methods bound ``I(g; w)``: tried one after the other, until the interval is narrow enough.

Every method bounds ``I(g; w)`` in expectation. Taking the best average of several on the draws that
are reported would favour the one whose noise points the right way, and so void the bound; nor may
these draws tell when to stop. A few pilot draws of the guide, which serve no other purpose, decide
both: given them the methods are fixed.

Methods are tried from the cheapest on, as estimators declare their
:meth:`~pyro_perm.estimators.Estimator.cost`. It is enough once the best upper bound exceeds the
best lower one by less than the standard error of what will be reported, for what is as noisy gains
nothing from being narrower. The best on either side then bound the other draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_perm.density.density import Density
from pyro_perm.estimators import Bounds, Estimator, registered_estimators
from pyro_perm.posterior.bounds.draws import Draw, bounds_of_draws, scale_gains, standard_error

NUM_PILOTS = 8
# In nats: no interval need be narrower.
_NARROW = 0.01
# Dearer methods take more and smaller steps, and so longer than their multiplications tell.
_CAUTION = 3.0
_NORMAL_OVER_MEDIAN_DISTANCE = 1.4826


@dataclass(frozen=True)
class Budget:
    """Time that may be spent, from now on.

    Attributes:
        max_seconds: None for as long as it takes.
    """

    max_seconds: float | None = None
    _start: float = field(default_factory=lambda: time.perf_counter(), init=False)

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive or None, but is {self.max_seconds!r}")

    @property
    def left(self) -> float:
        """Seconds, infinite where there is no limit."""
        if self.max_seconds is None:
            return math.inf
        return self.max_seconds - (time.perf_counter() - self._start)

    @property
    def is_unlimited(self) -> bool:
        """Whether it may take as long as it takes."""
        return self.max_seconds is None

    @property
    def exceeded(self) -> str:
        """Why a method was not tried, or not run on all draws."""
        return f"it would take longer than max_seconds={self.max_seconds:g}"


class Choice(NamedTuple):
    """Methods that are worth their time.

    Attributes:
        estimators: the best on either side; none where the trivial bounds must do.
        skipped: the others that were not tried, and why.
    """

    estimators: list[Estimator]
    skipped: str = ""


def competitors(density: Density) -> list[Estimator]:
    """The methods that compete, cheapest first, but before all others the exact sum."""
    candidates = [e for kind in registered_estimators() for e in kind.candidates(density)]
    return sorted(candidates, key=lambda e: (not is_exact(e), e.cost(density)))


def is_exact(estimator: Estimator) -> bool:
    """Whether it bounds both sides at once."""
    return estimator.is_lower_bound and estimator.is_upper_bound


def choose(
    candidates: Sequence[Estimator],
    draw: Callable[[], Draw],
    num_samples: int,
    budget: Budget,
    *,
    progress: bool = False,
) -> Choice:
    """Try methods on pilot draws until the interval is narrow, and take the best.

    :param candidates: in the order of their trial.
    :param draw: draws from the guide.
    :param num_samples: number of draws that the chosen methods will bound.
    :param budget: for the trials and for the chosen methods on all draws.
    :param progress: whether to show a progress bar.
    """
    if not candidates:
        return Choice([])
    if budget.is_unlimited and (len(candidates) == 1 or is_exact(candidates[0])):
        return Choice([candidates[0]])
    if budget.left <= 0:
        return Choice([], _explained({budget.exceeded: list(candidates)}))
    pilot = _Pilot([draw() for _ in range(NUM_PILOTS)], num_samples)
    skipped: dict[str, list[Estimator]] = {}
    for estimator in tqdm(candidates, desc="pilot", leave=False, disable=not progress):
        if pilot.is_narrow:
            skipped.setdefault(pilot.width_and_error, []).append(estimator)
        elif not pilot.attempt(estimator, budget):
            skipped.setdefault(budget.exceeded, []).append(estimator)
    return Choice(pilot.best, _explained(skipped))


class _Trial(NamedTuple):
    """A method, its bounds on the pilot draws, and the seconds that they took."""

    estimator: Estimator
    bounds: Bounds
    seconds: float


class _Pilot:
    """Methods that were tried on the same few draws.

    :param draws: from the guide, for this purpose alone.
    :param num_samples: number of draws that the best of them will bound.
    """

    def __init__(self, draws: Sequence[Draw], num_samples: int) -> None:
        self._densities = [draw.density for draw in draws]
        self._weight = draws[0].weight
        self._elbos = torch.tensor([draw.elbo for draw in draws], dtype=torch.float64, device="cpu")
        self._elbos += self._weight * scale_gains(self._densities)
        self._num_samples = num_samples
        self._trials: list[_Trial] = []

    def attempt(self, estimator: Estimator, budget: Budget) -> bool:
        """Try a method, unless there is no time for it; whether it may be chosen."""
        if self._predicted_seconds(estimator) > budget.left:
            return False
        start = time.perf_counter()
        bounds = bounds_of_draws(estimator, self._densities)
        self._trials.append(_Trial(estimator, bounds, time.perf_counter() - start))
        if self._seconds_for_all_draws <= budget.left:
            return True
        self._trials.pop()
        return False

    @property
    def best(self) -> list[Estimator]:
        """The methods with the highest lower and with the lowest upper bound."""
        return list(dict.fromkeys(trial.estimator for trial in self._best if trial is not None))

    @property
    def is_narrow(self) -> bool:
        """Whether the interval is no wider than its error; not before a method was tried."""
        enough = max(self._error, self._weight * _NARROW)
        return bool(self._trials) and self._width <= enough

    @property
    def width_and_error(self) -> str:
        """Why it is narrow enough."""
        return f"the interval is {self._width:.2g} nats wide, its standard error {self._error:.2g}"

    @property
    def _best(self) -> tuple[_Trial | None, _Trial | None]:
        def mean(trial: _Trial, side: int) -> float:
            values = trial.bounds[side]
            assert values is not None
            return values.mean().item()

        lower, upper = ([t for t in self._trials if t.bounds[side] is not None] for side in (0, 1))
        return (
            max(lower, key=lambda trial: mean(trial, 0), default=None),
            min(upper, key=lambda trial: mean(trial, 1), default=None),
        )

    @property
    def _width(self) -> float:
        """Of the interval on the pilot draws, the trivial bounds included."""
        lower, upper = self._values
        order = self._densities[0].symmetry.log_compact_order
        return self._weight * (min(upper.mean().item(), order) - max(lower.mean().item(), 0.0))

    @property
    def _error(self) -> float:
        """The larger standard error of either side, once it is an average over all draws.

        One outlier of the ELBO among few draws must not end the search: a robust estimate counts
        where it is smaller.
        """
        share = math.sqrt(len(self._elbos) / self._num_samples)
        errors = []
        for values in self._values:
            weighted = self._weight * values
            sums = self._elbos + weighted
            typical = min(standard_error(sums), _robust_standard_error(sums))
            errors.append(max(standard_error(weighted), typical))
        return share * max(errors)

    @property
    def _values(self) -> tuple[Tensor, Tensor]:
        """The best bounds, draw by draw, shape ``(num,)``; trivial where there is none."""
        lower, upper = self._best
        zeros = torch.zeros_like(self._elbos)
        order = self._densities[0].symmetry.log_compact_order
        return (
            zeros if lower is None or lower.bounds.lower is None else lower.bounds.lower,
            zeros + order if upper is None or upper.bounds.upper is None else upper.bounds.upper,
        )

    @property
    def _seconds_for_all_draws(self) -> float:
        best = {id(trial): trial for trial in self._best if trial is not None}
        seconds = sum(trial.seconds for trial in best.values())
        return seconds * self._num_samples / len(self._elbos)

    def _predicted_seconds(self, estimator: Estimator) -> float:
        """For a trial and all draws, besides what the present best takes; zero if unknown."""
        if not self._trials:
            return 0.0
        last = self._trials[-1]
        cost = estimator.cost(self._densities[0]) / last.estimator.cost(self._densities[0])
        draws = 1 + self._num_samples / len(self._elbos)
        return _CAUTION * last.seconds * cost * draws + self._seconds_for_all_draws


def _robust_standard_error(values: Tensor) -> float:
    """The same for Normal values, from their median distance to the median."""
    distances = (values - values.median()).abs()
    return _NORMAL_OVER_MEDIAN_DISTANCE * distances.median().item() / math.sqrt(len(values))


def _explained(skipped: Mapping[str, Sequence[Estimator]]) -> str:
    return "; ".join(f"{', '.join(map(str, who))}: {why}" for why, who in skipped.items())
