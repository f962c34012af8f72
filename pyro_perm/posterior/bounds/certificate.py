"""Certified intervals for the mutual information: the better of several bounds on either side.

Pilot draws choose the methods (``pyro_perm.posterior.bounds.portfolio``). Against those that
mislead, the methods compete with each other and with the trivial bounds, 0 and ``log |G|``, on the
reported draws as well, which are split in two: each half chooses what is reported on the other, so
that no draw takes part in the choice of its own bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_perm.estimators import Bounds, Estimator
from pyro_perm.posterior.bounds._table import Row, table
from pyro_perm.posterior.bounds.draws import Draw, bounds_of_draws, scale_gains, standard_error
from pyro_perm.posterior.bounds.portfolio import Budget, choose, competitors, is_exact

TRIVIAL = "trivial"
_FEWEST_SAMPLES = 4
_LARGEST_CROSSING = 5.0


@dataclass(frozen=True, repr=False)
class MutualInformation:
    """An interval for ``I(g; w)``, in nats. Prints as a short table.

    Where units are rescaled, ``w`` stands for their orbits: the information is that on the
    finite part of the group, and what symmetrization gains is the sum of it and of ``scales``.

    Attributes:
        lower: estimate that bounds ``I`` from below in expectation.
        upper: the same from above.
        lower_standard_error: of ``lower``.
        upper_standard_error: of ``upper``.
        log_order: ``log |G|``, the most that ``I`` can be.
        lower_method: what gave ``lower``; two methods, where each served on half of the samples.
        upper_method: what gave ``upper``.
        num_samples: number of samples of the guide.
        skipped: methods that were not tried, and why; empty if none.
        scales: what rescaling units gains, before the finite part of the group: the divergence of
            the base guide from the prior along the orbits. Zero where no group rescales.
        scales_standard_error: of ``scales``.
    """

    lower: float
    upper: float
    lower_standard_error: float
    upper_standard_error: float
    log_order: float
    lower_method: str
    upper_method: str
    num_samples: int
    skipped: str = ""
    scales: float = 0.0
    scales_standard_error: float = 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds as printed, within ``[0, log |G|]`` and in order.

        By their noise the estimates ``lower`` and ``upper`` may leave this range and cross. To
        average over several runs, take them as they are: cut off, they are biased inwards.
        """
        lower, upper = (min(max(b, 0.0), self.log_order) for b in sorted((self.lower, self.upper)))
        return lower, upper

    @property
    def rows(self) -> list[Row]:
        """The lines that it prints."""
        lower, upper = self.interval
        scales = Row("gain of scales", self.scales, self.scales_standard_error, "exact")
        return [
            *([scales] if self.scales or self.scales_standard_error else []),
            Row("I(g; w), lower bound", lower, self.lower_standard_error, self.lower_method),
            Row("I(g; w), upper bound", upper, self.upper_standard_error, self.upper_method),
        ]

    def __repr__(self) -> str:
        return table(self.log_order, self.num_samples, self.rows, self.skipped)


@dataclass(frozen=True)
class Certificate:
    """Bounds on ``I(g; w)``, draw by draw: shape ``(num_samples,)``, in nats.

    Attributes:
        lower: integrands whose average bounds ``I`` from below in expectation.
        upper: the same from above.
        scales: what rescaling units gains at each draw.
        elbos: what these gains are added to.
        lower_method: what gave ``lower``.
        upper_method: what gave ``upper``.
        skipped: methods that were not tried, and why.
        log_order: ``log |G|``.
    """

    lower: Tensor
    upper: Tensor
    scales: Tensor
    elbos: Tensor
    lower_method: str
    upper_method: str
    skipped: str
    log_order: float

    def summary(self) -> MutualInformation:
        """Averages over the draws."""
        return MutualInformation(
            lower=self.lower.mean().item(),
            upper=self.upper.mean().item(),
            lower_standard_error=standard_error(self.lower),
            upper_standard_error=standard_error(self.upper),
            log_order=self.log_order,
            lower_method=self.lower_method,
            upper_method=self.upper_method,
            num_samples=len(self.lower),
            skipped=self.skipped,
            scales=self.scales.mean().item(),
            scales_standard_error=standard_error(self.scales),
        )


@torch.no_grad()
def certify(
    draw: Callable[[], Draw],
    num_samples: int,
    estimators: Sequence[Estimator] | None = None,
    *,
    budget: Budget | None = None,
    progress: bool = False,
) -> Certificate:
    """Bounds on the mutual information from independent draws of the guide.

    :param draw: draws from the guide: first those that are reported, then those of the pilot.
    :param num_samples: number of reported draws, at least 4.
    :param estimators: the methods that compete, in the order of their trial; None is all that are
        worth trying.
    :param budget: seconds for all of it. The reported draws are made in any case; what remains
        goes to the methods.
    :param progress: whether to show a progress bar.
    :raises ValueError: if there are too few draws, or an estimator does not serve them.
    :raises FloatingPointError: if the bounds are no numbers.
    :raises RuntimeError: if the sides cross by more than their error, which is a bug.
    """
    if not isinstance(num_samples, int) or num_samples < _FEWEST_SAMPLES:
        raise ValueError(
            f"num_samples must be an int of at least {_FEWEST_SAMPLES}, but is {num_samples!r}: "
            "each half of the samples chooses the bounds for the other"
        )
    budget = budget or Budget()
    draws = [draw() for _ in tqdm(range(num_samples), leave=False, disable=not progress)]
    densities = [each.density for each in draws]
    candidates = competitors(densities[0]) if estimators is None else list(estimators)
    choice = choose(candidates, draw, num_samples, budget, progress=progress)
    methods = tqdm(choice.estimators, desc="bounds", leave=False, disable=not progress)
    lower, upper = _competing(
        [(method, bounds_of_draws(method, densities)) for method in methods],
        densities[0].symmetry.log_compact_order,
        num_samples,
    )
    lower_values, lower_method = _best_of_halves(lower, torch.argmax)
    upper_values, upper_method = _best_of_halves(upper, torch.argmin)
    _require_numbers(lower_values, lower_method)
    _require_numbers(upper_values, upper_method)
    _require_uncrossed(lower_values, upper_values, lower_method, upper_method)
    return Certificate(
        lower=lower_values,
        upper=upper_values,
        scales=scale_gains(densities),
        elbos=torch.tensor([each.elbo for each in draws], dtype=torch.float64, device="cpu"),
        lower_method=lower_method,
        upper_method=upper_method,
        skipped=choice.skipped,
        log_order=densities[0].symmetry.log_compact_order,
    )


_Candidates = list[tuple[str, Tensor]]


def _competing(
    found: Sequence[tuple[Estimator, Bounds]], log_order: float, num_samples: int
) -> tuple[_Candidates, _Candidates]:
    """Names and values of the methods on either side: the exact one alone, or trivial ones too."""
    zeros = torch.zeros(num_samples, dtype=torch.float64, device="cpu")
    exact = [(method, bounds) for method, bounds in found if is_exact(method)]
    lower = [] if exact else [(TRIVIAL, zeros)]
    upper = [] if exact else [(TRIVIAL, zeros + log_order)]
    for method, bounds in exact[:1] or found:
        name = method.method or type(method).__name__
        if bounds.lower is not None:
            lower.append((name, bounds.lower))
        if bounds.upper is not None:
            upper.append((name, bounds.upper))
    return lower, upper


def _best_of_halves(
    candidates: _Candidates, best: Callable[[Tensor], Tensor]
) -> tuple[Tensor, str]:
    """Values of the methods that the other half of the samples found best."""
    values = torch.stack([each for _, each in candidates])
    half = values.shape[1] // 2
    first, second = values[:, :half], values[:, half:]
    chosen = [int(best(part.mean(1))) for part in (second, first)]
    methods = dict.fromkeys(candidates[index][0] for index in chosen)
    return torch.cat([first[chosen[0]], second[chosen[1]]]), " and ".join(methods)


def _require_numbers(bounds: Tensor, method: str) -> None:
    if bounds.isnan().any():
        raise FloatingPointError(
            f"the bounds by {method} are not numbers: the base guide's parameters have diverged, "
            "or its scales underflowed, so train it anew, at a lower learning rate; if they are "
            "finite, it is a bug of the method"
        )


def _require_uncrossed(lower: Tensor, upper: Tensor, lower_method: str, upper_method: str) -> None:
    crossing = (lower - upper).mean().item()
    error = math.hypot(standard_error(lower), standard_error(upper))
    if not crossing <= _LARGEST_CROSSING * error + 1e-6:
        raise RuntimeError(
            f"the lower bound ({lower.mean():.4g} nats, {lower_method}) exceeds the upper bound "
            f"({upper.mean():.4g} nats, {upper_method}) by more than {_LARGEST_CROSSING:g} "
            "standard errors. This is a bug in pyro_perm: please report it, with model and guide"
        )
