"""Certified intervals for the mutual information: the better of several bounds on either side.

Every method bounds ``I(g; w)`` from both sides in expectation. Taking the best average of several
would favour the one whose noise points the right way, and so void the bound. Therefore samples are
split in two: each half chooses the methods whose values are reported on the other half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import (
    AnnealedImportanceSampled,
    Bounds,
    Estimator,
    Exact,
    ImportanceSampled,
    SampledChainRule,
)
from pyro_perm.symmetry.separable import coupled_sites

TRIVIAL, ANNEALED = "trivial", "annealed importance sampling"
# Drawing a permutation costs n^3: wide layers get fewer of them.
_MOST_PERMUTATIONS, _FEWEST_PERMUTATIONS, _ROWS_OF_PERMUTATIONS = 64, 4, 3200
_ENTRIES_AT_ONCE = 2**23
_MOST_UNITS_ENUMERATED = 8
_FEWEST_STEPS, _MOST_STEPS, _NUM_PILOTS = 100, 400, 4
_LARGEST_CROSSING = 5.0


@dataclass(frozen=True)
class MutualInformation:
    """An interval for ``I(g; w)``, in nats.

    Attributes:
        lower: estimate that bounds ``I`` from below in expectation.
        upper: the same from above.
        lower_standard_error: of ``lower``.
        upper_standard_error: of ``upper``.
        log_order: ``log |G|``, the most that ``I`` can be.
        lower_method: what gave ``lower``; two methods, where each served on half of the samples.
        upper_method: what gave ``upper``.
        num_samples: number of samples of the guide.
    """

    lower: float
    upper: float
    lower_standard_error: float
    upper_standard_error: float
    log_order: float
    lower_method: str
    upper_method: str
    num_samples: int


@dataclass(frozen=True)
class Certificate:
    """Bounds on ``I(g; w)``, draw by draw: shape ``(num_samples,)``, in nats."""

    lower: Tensor
    upper: Tensor
    lower_method: str
    upper_method: str
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
        )


def portfolio(density: FactorizedDensity) -> dict[str, Estimator]:
    """The methods that compete: the exact one alone, where the group is small enough."""
    groups = density.symmetry.groups
    coupled = bool(coupled_sites(density.symmetry))
    if not coupled or max(groups.values()) <= _MOST_UNITS_ENUMERATED:
        try:
            Exact().log_ratio(density)
        except ValueError:
            pass
        else:
            return {"exact": Exact()}
    num = min(_MOST_PERMUTATIONS, _ROWS_OF_PERMUTATIONS // max(groups.values()))
    num = max(_FEWEST_PERMUTATIONS, num)
    if density.symmetry.acting_groups:  # The other methods draw permutations and nothing else.
        return {"chain rule": SampledChainRule(num)}
    sampled: dict[str, Estimator] = {"importance sampling": ImportanceSampled(num)}
    if not coupled or not density.factorizes:
        return sampled
    return {
        "chain rule": SampledChainRule(num),
        **sampled,
        ANNEALED: AnnealedImportanceSampled(_annealing_steps(density)),
    }


@torch.no_grad()
def _annealing_steps(density: FactorizedDensity) -> int:
    """As many steps as leave a gap of one nat, judged by a short run.

    The gap falls with the square root of their number where chains are slow, which is where it is
    wide. The run is on fresh draws of the guide, which serve no other purpose: those that are
    reported must not choose how they are bounded.
    """
    bounds = AnnealedImportanceSampled(_FEWEST_STEPS).bounds(density.redrawn(_NUM_PILOTS))
    assert bounds.lower is not None and bounds.upper is not None
    gap = (bounds.upper - bounds.lower).mean().item()
    enough = _FEWEST_STEPS * max(gap, 0.0) ** 2
    return min(max(_FEWEST_STEPS, math.ceil(enough)), _MOST_STEPS)


def certify(
    densities: Sequence[FactorizedDensity],
    methods: Mapping[str, Estimator] | None = None,
    *,
    progress: bool = False,
) -> Certificate:
    """Bounds on the mutual information from independent draws of the guide.

    :param densities: one density a draw, all of one symmetry, without batch dimensions.
    :param methods: the estimators that compete; None is :func:`portfolio`.
    :param progress: whether to show a progress bar.
    :raises RuntimeError: if the sides cross by more than their error, which is a bug.
    """
    if methods is None:
        methods = portfolio(densities[0])
    chunks = list(_chunks(densities))
    parts: dict[str, list[Bounds]] = {name: [] for name in methods}
    with tqdm(total=len(chunks) * len(methods), leave=False, disable=not progress) as bar:
        for chunk in chunks:
            for name, method in methods.items():
                parts[name].append(method.bounds(chunk))
                bar.update()
    log_order = densities[0].symmetry.log_order
    zeros = torch.zeros(len(densities), dtype=torch.float64)
    lower = {TRIVIAL: zeros} | _joined(parts, "lower")
    upper = {TRIVIAL: zeros + log_order} | _joined(parts, "upper")
    lower_values, lower_method = _best_of_halves(lower, sign=1)
    upper_values, upper_method = _best_of_halves(upper, sign=-1)
    _require_uncrossed(lower_values, upper_values, lower_method, upper_method)
    return Certificate(lower_values, upper_values, lower_method, upper_method, log_order)


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of independent values."""
    return values.std().item() / math.sqrt(len(values))


def _joined(parts: Mapping[str, list[Bounds]], side: str) -> dict[str, Tensor]:
    joined = {}
    for name, bounds in parts.items():
        values = [getattr(bound, side) for bound in bounds]
        if all(value is not None for value in values):
            joined[name] = torch.cat([*map(torch.atleast_1d, values)]).detach().cpu()
    return joined


def _best_of_halves(candidates: Mapping[str, Tensor], sign: int) -> tuple[Tensor, str]:
    """Values of the methods that the other half of the samples found best."""
    if "exact" in candidates:
        return candidates["exact"], "exact"
    names = list(candidates)
    values = torch.stack([candidates[name] for name in names])
    half = values.shape[1] // 2
    first, second = values[:, :half], values[:, half:]
    chosen = [int((sign * part.mean(1)).argmax()) for part in (second, first)]
    methods = dict.fromkeys(names[index] for index in chosen)
    return torch.cat([first[chosen[0]], second[chosen[1]]]), " and ".join(methods)


def _require_uncrossed(lower: Tensor, upper: Tensor, lower_method: str, upper_method: str) -> None:
    crossing = (lower - upper).mean().item()
    error = math.hypot(standard_error(lower), standard_error(upper))
    if not crossing <= _LARGEST_CROSSING * error + 1e-6:
        raise RuntimeError(
            f"the lower bound ({lower.mean():.4g} nats, {lower_method}) exceeds the upper bound "
            f"({upper.mean():.4g} nats, {upper_method}) by more than {_LARGEST_CROSSING:g} "
            "standard errors. This is a bug in pyro_perm: please report it, with model and guide"
        )


def _chunks(densities: Sequence[FactorizedDensity]) -> Iterable[FactorizedDensity]:
    if not densities[0].factorizes:  # Joint densities do not stack.
        yield from densities
        return
    pairs = sum(n**2 for n in densities[0].symmetry.groups.values())
    at_once = max(1, _ENTRIES_AT_ONCE // (_MOST_PERMUTATIONS * pairs))
    for start in range(0, len(densities), at_once):
        yield _stack(densities[start : start + at_once])


def _stack(densities: Sequence[FactorizedDensity]) -> FactorizedDensity:
    """Draws as one batch; parameters that all of them share stay without batch dimension."""
    first = densities[0]

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        shared = all(tensor is tensors[0] or torch.equal(tensor, tensors[0]) for tensor in tensors)
        return tensors[0] if shared else torch.stack(list(tensors))

    return FactorizedDensity(
        symmetry=first.symmetry,
        values={s: torch.stack([d.values[s] for d in densities]) for s in first.values},
        locs={s: stacked([d.locs[s] for d in densities]) for s in first.locs},
        scales={s: stacked([d.scales[s] for d in densities]) for s in first.scales},
        batch_shape=torch.Size([len(densities)]),
    )
