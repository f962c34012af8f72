"""Numerical check that a model's log joint does not change under a permutation group."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_perm.program.double_precision import DoublePrecision
from pyro_perm.program.opening import open_program
from pyro_perm.program.program import Program
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.group import GroupSpec, SymmetryGroup, act

_NUM_POINTS, _NUM_ELEMENTS = 2, 4
_MAX_DRAWS = 20
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}
_EFFECTIVE = 1e3

LogProbs = Mapping[str, float]
_Result = TypeVar("_Result")


class SymmetryVerificationError(ValueError):
    """A permutation of a group's units changes the model's log joint: the spec is wrong."""


@dataclass(frozen=True)
class GroupCheck:
    """What permuting one group did to the log joint.

    Attributes:
        group: the group.
        change: the largest change under its generators, in nats.
        control: the change when the last axis that moves is left behind, in nats; None where a
            single axis moves, which has no mis-tied variant.
        rounding: how much of a change rounding errors can explain, in nats.
        by_site: the changes of the sites' log-probabilities, in nats.
        is_flip: whether the sign of a unit was flipped, rather than units permuted.
    """

    group: str
    change: float
    control: float | None
    rounding: float
    by_site: Mapping[str, float] = field(default_factory=dict)
    is_flip: bool = False

    @property
    def is_effective(self) -> bool:
        """Whether a wrong spec would have been noticed."""
        return self.control is not None and self.control > _EFFECTIVE * self.rounding

    @property
    def passed(self) -> bool:
        """Whether the log joint did not change."""
        return self.change <= self.rounding


def verify(symmetry: GroupSpec, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check that the log joint is the same before and after the generators of each group.

    Binds the symmetry to the model. See :func:`check_groups` for how the log joint is compared.
    Warns where the log joint does not change for the mis-tied control either.

    :param symmetry: the symmetry to check.
    :param model: a Pyro model, called with ``*args`` and ``**kwargs``.
    :raises ValueError: if the spec does not fit the model's sites.
    :raises SymmetryVerificationError: if a group changes the log joint; names the group, its axes
        and the sites whose log-probability changes.
    """
    checks = check_groups(symmetry, model, *args, **kwargs)
    for check in checks:
        if not check.passed:
            raise SymmetryVerificationError(_explain(symmetry, check))
    for check in checks:
        if check.control is not None and not check.is_effective:
            warnings.warn(_doubt(symmetry, check), stacklevel=3)


def check_groups(
    symmetry: GroupSpec, model: Callable[..., Any], *args: Any, **kwargs: Any
) -> list[GroupCheck]:
    """Compare the log joint before and after a transposition, a cycle and a flip of each group.

    It is computed at random points of the latent space, in double precision where the model allows,
    with enumerated variables summed out and the model's own randomness and subsampling held fixed.
    For comparison, each group is also moved with one of its axes left behind.

    :returns: one result for each group, and another one for the signs of a group that flips them.
    """
    return _evaluate(_check_groups, symmetry, model, args, kwargs)


def confirm(symmetry: GroupSpec, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """A quicker :func:`verify` for a symmetry that was derived from the model.

    A few random elements move all groups at once; each notices a wrong group with a probability of
    at least one half. Binds the symmetry to the model.

    :raises SymmetryVerificationError: if the log joint changes.
    """
    if not _evaluate(_is_invariant, symmetry, model, args, kwargs):
        verify(symmetry, model, *args, **kwargs)


def _evaluate(
    check: Callable[[SymmetryGroup, _Density], _Result],
    symmetry: GroupSpec,
    model: Callable[..., Any],
    args: Any,
    kwargs: Any,
) -> _Result:
    """Run a check on the model's log joint, in the best precision that the model allows."""
    with open_program(model, args, kwargs) as program:
        group = symmetry.bind_shapes(program.site_shapes(symmetry.spec))
        try:
            return check(group, _Density(program, torch.float64))
        except RuntimeError:  # an operation that exists in one precision only
            return check(group, _Density(program, torch.float32))


class _Density:
    """The log-probability of every site as a function of the latent values."""

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        self.rounding = _ROUNDING[dtype]
        self._dtype = dtype
        self._precision = DoublePrecision() if dtype == torch.float64 else nullcontext()
        if isinstance(self._precision, DoublePrecision):
            program = program.map_inputs(self._precision.double)
        self._program = program
        self._latents = {
            name: latent
            for name, latent in program.latents.items()
            if not latent.support.is_discrete
        }

    def draw(self) -> dict[str, Tensor]:
        """A random value for every latent site, standard normal before it meets its constraint."""
        values = {}
        for name, latent in self._latents.items():
            transform = biject_to(latent.support)
            shape = transform.inverse_shape(latent.shape)
            unconstrained = torch.randn(shape, dtype=self._dtype, device=latent.value.device)
            values[name] = transform(unconstrained)
        return values

    def __call__(self, values: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
        """The sites' log-probabilities, and the sum of the absolute values of their entries."""
        with self._precision:
            log_probs = self._program.run(values).log_probs()
            size = sum(float(log_prob.abs().sum()) for log_prob in log_probs.values())
            return {name: float(log_prob.sum()) for name, log_prob in log_probs.items()}, size


def _check_groups(symmetry: SymmetryGroup, density: _Density) -> list[GroupCheck]:
    """All generators at one point; at another, one element that moves all groups at once."""
    if not symmetry:
        return []
    checks = _check_generators(symmetry, density, *_finite_point(density))
    values, before, rounding = _finite_point(density)
    after, _ = density(symmetry.apply(symmetry.sample(), values))
    if max(_changes(before, after).values()) <= rounding:
        return checks
    return checks + _check_generators(symmetry, density, values, before, rounding)


def _is_invariant(symmetry: SymmetryGroup, density: _Density) -> bool:
    for _ in range(_NUM_POINTS if symmetry else 0):
        values, before, rounding = _finite_point(density)
        for _ in range(_NUM_ELEMENTS):
            after, _ = density(symmetry.apply(symmetry.sample(), values))
            if max(_changes(before, after).values()) > rounding:
                return False
    return True


def _check_generators(
    symmetry: SymmetryGroup,
    density: _Density,
    values: dict[str, Tensor],
    before: LogProbs,
    rounding: float,
) -> list[GroupCheck]:
    worst: dict[tuple[str, bool], GroupCheck] = {}
    for group, permutation in symmetry.generators():
        g, is_flip = {group: permutation}, bool((permutation < 0).any())
        after, _ = density(symmetry.apply(g, values))
        changes = _changes(before, after)
        control = _control(symmetry, density, g, is_flip, values, before)
        check = GroupCheck(
            group, max(changes.values()), control, rounding, changes, is_flip=is_flip
        )
        known = worst.setdefault((group, is_flip), check)
        controls = [c.control for c in (known, check) if c.control is not None]
        found = max(known, check, key=lambda c: c.change)
        worst[group, is_flip] = replace(found, control=max(controls, default=None))
    return list(worst.values())


def _finite_point(density: _Density) -> tuple[dict[str, Tensor], dict[str, float], float]:
    for _ in range(_MAX_DRAWS):
        values = density.draw()
        before, size = density(values)
        if all(map(math.isfinite, before.values())):
            return values, before, density.rounding * (1 + size)
    raise SymmetryVerificationError(
        f"the log joint was not finite at {_MAX_DRAWS} random points, so no symmetry of it could "
        "be verified: call with data on which the model's log-probability is finite"
    )


def _control(
    symmetry: SymmetryGroup,
    density: _Density,
    g: dict[str, Tensor],
    is_flip: bool,
    values: dict[str, Tensor],
    before: LogProbs,
) -> float | None:
    """How much the log joint changes when one axis that moves is left behind."""
    (group,) = g
    along = [
        (site, axis)
        for site in symmetry.spec[group]
        for acting, axis in symmetry.actions_on(site)
        if acting == group and (axis.sign or not is_flip)
    ]
    rest: dict[str, list[tuple[str, Axis]]] = {}
    for site, axis in along[:-1]:
        rest.setdefault(site, []).append((group, axis))
    if not rest:
        return None
    signed = symmetry.signed_groups
    moved = {
        site: act(acting, signed, g, values[site], symmetry.site_rank(site))
        for site, acting in rest.items()
    }
    after, _ = density({**values, **moved})
    return max(_changes(before, after).values())


def _changes(before: LogProbs, after: LogProbs) -> dict[str, float]:
    changes = {site: abs(after[site] - before[site]) for site in before}
    return {site: math.inf if math.isnan(change) else change for site, change in changes.items()}


def _explain(symmetry: GroupSpec, check: GroupCheck) -> str:
    sites = symmetry.spec[check.group]
    changed = [site for site, change in check.by_site.items() if not change <= check.rounding]
    control = "" if check.control is None else f" (mis-tied control {check.control:.1e})"
    what = ", ".join(f"'{site}' by {check.by_site[site]:.2g} nats" for site in changed)
    priors = [site for site in changed if site in sites]
    axes = ", ".join(f"{site}[{', '.join(map(str, along))}]" for site, along in sites.items())
    advice = f"an axis is wrong or missing in {axes}"
    if check.is_flip:
        advice = f"an activation is not odd, or {advice}"
    if priors and check.is_flip:
        advice = (
            f"the prior of site '{priors[0]}' is not symmetric about zero (or its mean is a latent "
            f"site that the group must flip too), or {advice}"
        )
    elif priors:
        advice = (
            f"the prior of site '{priors[0]}' is not exchangeable over the group's units (or its "
            f"hyperparameters are latent sites that the group must permute too), or {advice}"
        )
    return (
        f"{_mover(check)} changes the log joint by {check.change:.1e} nats{control}: the "
        f"log-probability of site {what or 'none'}; {advice}"
    )


def _doubt(symmetry: GroupSpec, check: GroupCheck) -> str:
    *_, (site, axis) = (
        (site, axis)
        for site, axes in symmetry.spec[check.group].items()
        for axis in axes
        if axis.sign or not check.is_flip
    )
    return (
        f"{_mover(check)} leaves the log joint as it is, but so does the group without "
        f"axis {axis} of site '{site}': the check could not have noticed a wrong spec. Call "
        "verify() with data on which the site matters, or leave the axis out"
    )


def _mover(check: GroupCheck) -> str:
    return f"{'flipping a unit of ' if check.is_flip else ''}group '{check.group}'"
