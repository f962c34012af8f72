"""Numerical check of groups: what must not change in a model's log joint when they act."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pyro_perm.program.call import Call
from pyro_perm.program.opening import open_program
from pyro_perm.program.program import Program
from pyro_perm.program.scalable_priors import unscalable_sites
from pyro_perm.symmetry.group import GroupSpec, SymmetryGroup
from pyro_perm.verification.errors import SymmetryVerificationError
from pyro_perm.verification.explanations import doubt, explanation
from pyro_perm.verification.group_check import GroupCheck
from pyro_perm.verification.log_density import LogDensity, Point
from pyro_perm.verification.moves import RESCALE, Move, generators, random_element, rescalings
from pyro_perm.verification.repairs import repair

_NUM_POINTS, _NUM_ELEMENTS = 2, 4

_Result = TypeVar("_Result")


def verify(symmetry: GroupSpec, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check what each group must leave alone before and after its generators act.

    Binds the symmetry to the model. See :func:`check_groups` for what is compared. Warns where
    nothing changes for the mis-tied control either.

    :param symmetry: the symmetry to check.
    :param model: a Pyro model, called with ``*args`` and ``**kwargs``.
    :raises ValueError: if the spec does not fit the model's sites.
    :raises SymmetryVerificationError: if a group changes what it must not; names the group, its
        axes and the sites whose log-probability changes.
    """
    checks = check_groups(symmetry, model, *args, **kwargs)
    for check in checks:
        if not check.passed:
            raise SymmetryVerificationError(explanation(symmetry, check))
    for check in checks:
        if check.control is not None and not check.is_effective:
            warnings.warn(doubt(symmetry, check), stacklevel=3)


def check_groups(
    symmetry: GroupSpec, model: Callable[..., Any], *args: Any, **kwargs: Any
) -> list[GroupCheck]:
    """Compare terms of the log joint before and after a transposition, a cycle, a flip and scales.

    Permutations and flips must leave the log joint alone. Scales must leave the likelihood alone,
    and the priors of the sites that stay; the priors of those that are rescaled must be densities
    of independent entries on the whole real line, and depend on no other site that is.

    All is computed at random points of the latent space, in double precision where the model
    allows, with enumerated variables summed out and the model's own randomness and subsampling held
    fixed. For comparison, each group is also moved with one of its axes left behind.

    :returns: one result for each group that permutes, one for the signs of each group that flips
        them, and one for the scales of each group that has some.
    :raises SymmetryVerificationError: if a site that is rescaled has another kind of prior.
    """
    return _evaluate(_check_groups, symmetry, Call(model, args, kwargs))


def confirm(symmetry: GroupSpec, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """A quicker :func:`verify` for a symmetry that was derived from the model.

    A few random elements move all groups at once; each notices a wrong group with a probability of
    at least one half. Binds the symmetry to the model.

    :raises SymmetryVerificationError: if something changes that must not.
    """
    if not _evaluate(_are_invariant, symmetry, Call(model, args, kwargs)):
        verify(symmetry, model, *args, **kwargs)


def _evaluate(
    check: Callable[[SymmetryGroup, LogDensity], _Result],
    symmetry: GroupSpec,
    model: Call,
) -> _Result:
    """Run a check on the model's log joint, in the best precision that the model allows."""
    with open_program(model) as program:
        group = symmetry.bind_shapes(program.site_shapes(symmetry.spec))
        _require_scalable(group, program)
        group = group.without(program.aliases)
        return check(group, LogDensity.in_best_precision(program))


def _check_groups(group: SymmetryGroup, density: LogDensity) -> list[GroupCheck]:
    """All generators at one point; at another, one element that moves all groups at once."""
    if not group:
        return []
    points = (density.draw_point() for _ in range(2))
    (first, near_first), (second, near_second) = ((p, density.perturb(p)) for p in points)
    checks = _check_generators(group, density, density.with_measured_rounding(first, near_first))
    change = _change(group, density, second)
    if change <= second.rounding:
        return checks
    second = density.with_measured_rounding(second, near_second)
    if change <= second.rounding:
        return checks
    return checks + _check_generators(group, density, second)


def _are_invariant(group: SymmetryGroup, density: LogDensity) -> bool:
    points = (density.draw_point() for _ in range(_NUM_POINTS if group else 0))
    return all(_is_invariant(group, density, point) for point in points)


def _is_invariant(group: SymmetryGroup, density: LogDensity, point: Point) -> bool:
    """Whether random elements change no more than rounding errors do.

    These are measured where less is granted. What they explain then is limited, for there is no
    mis-tied control which they would be seen to hide.
    """
    change = max(_change(group, density, point) for _ in range(_NUM_ELEMENTS))
    if change <= point.rounding:
        return True
    measured = density.with_measured_rounding(point, density.perturb(point))
    return change <= min(measured.rounding, point.negligible)


def _change(group: SymmetryGroup, density: LogDensity, point: Point) -> float:
    """How much a random element of the whole group changes what it must leave alone, in nats."""
    elements = list(random_element(group)), list(rescalings(group))
    return max(_largest(density.changes(point, moves)) for moves in elements if moves)


def _check_generators(group: SymmetryGroup, density: LogDensity, point: Point) -> list[GroupCheck]:
    """One result for each action of each group: the largest change that any generator made.

    For the first that fails, what may have been meant.
    """
    worst: dict[tuple[str, str], GroupCheck] = {}
    moves: dict[tuple[str, str], Move] = {}
    for move in generators(group):
        key = move.group, move.action
        check = _check(density, point, move)
        known = worst.get(key, check)
        controls = [c.control for c in (known, check) if c.control is not None]
        found = max(known, check, key=lambda c: c.change)
        worst[key] = replace(found, control=max(controls, default=None))
        moves[key] = move if found is check else moves[key]
    failed = next((key for key, check in worst.items() if not check.passed), None)
    if failed is not None:
        meant = repair(group, density, point, moves[failed])
        worst[failed] = replace(worst[failed], repair=meant)
    return list(worst.values())


def _check(density: LogDensity, point: Point, move: Move) -> GroupCheck:
    by_site = density.changes(point, [move])
    if move.action == RESCALE:
        by_site |= _changes_of_priors(density, point, move)
    control = None
    if len(move.axes) > 1:
        control = _largest(density.changes(point, [move.without_last_axis()]))
    return GroupCheck(move.group, move.action, _largest(by_site), control, point.rounding, by_site)


def _changes_of_priors(density: LogDensity, point: Point, move: Move) -> dict[str, float]:
    """How the prior of each site that moves changes when another one moves by itself."""
    found: dict[str, float] = {}
    moved = move.apply(point.values)
    for site in move.exempt:
        after = density.changes_at(point, {site: moved[site]})
        for other in (move.exempt - {site}) & after.keys():
            found[other] = max(found.get(other, 0.0), after[other])
    return found


def _largest(by_site: Mapping[str, float]) -> float:
    return max(by_site.values(), default=0.0)


def _require_scalable(group: SymmetryGroup, program: Program) -> None:
    scaled = [(f.name, site) for f in group.factors for site, axis in f.axes if axis.scale]
    reasons = unscalable_sites(program) if scaled else {}
    for name, site in scaled:
        if site in reasons:
            raise SymmetryVerificationError(
                f"group '{name}' rescales site '{site}', but {reasons[site]}: leave scale out of "
                "the group's axes"
            )
