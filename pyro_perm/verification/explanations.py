"""What to tell users about checks that failed, or that prove nothing."""

from __future__ import annotations

from pyro_perm.symmetry.actions import actions_of
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.group import GroupSpec
from pyro_perm.verification.group_check import GroupCheck
from pyro_perm.verification.moves import FLIP, PERMUTE, RESCALE

_MOVERS = {PERMUTE: "", FLIP: "flipping a unit of ", RESCALE: "rescaling the units of "}


def explanation(symmetry: GroupSpec, check: GroupCheck) -> str:
    """Why a check failed: what changed, by how much, and what may be wrong."""
    changed = [site for site, change in check.by_site.items() if not change <= check.rounding]
    control = "" if check.control is None else f" (mis-tied control {check.control:.1e})"
    what = ", ".join(f"'{site}' by {check.by_site[site]:.2g} nats" for site in changed)
    return (
        f"{_mover(check)} changes {_subject(check)} by {check.change:.1e} nats{control}: "
        f"the log-probability of site {what or 'none'}; {_advice(symmetry, check, changed)}"
    )


def doubt(symmetry: GroupSpec, check: GroupCheck) -> str:
    """Why a check proves nothing."""
    *_, (site, axis) = (
        (site, axis)
        for site, axes in symmetry.spec[check.group].items()
        for axis in axes
        if _moves(symmetry, check, axis)
    )
    return (
        f"{_mover(check)} leaves {_subject(check)} as it is, up to the {check.rounding:.0e} nats "
        f"that rounding errors explain, but so does the group without axis {axis} of site "
        f"'{site}': the check could not have noticed a wrong spec. Call verify() with data on "
        "which the site matters, or leave the axis out"
    )


def _advice(symmetry: GroupSpec, check: GroupCheck, changed: list[str]) -> str:
    sites = symmetry.spec[check.group]
    prior = next((site for site in changed if site in sites), None)
    axes = ", ".join(f"{site}[{', '.join(map(str, along))}]" for site, along in sites.items())
    advice = f"an axis is wrong or missing in {axes}"
    if check.action == RESCALE:
        return _advice_on_scales(check, prior, axes)
    if check.repair is not None:
        advice = f"{advice}: {check.repair}"
    if prior is not None and check.action == FLIP:
        return (
            f"the prior of site '{prior}' is not symmetric about zero (or its mean is a latent "
            f"site that the group must flip too), or {advice}"
        )
    if prior is not None:
        return (
            f"the prior of site '{prior}' is not exchangeable over the group's units (or its "
            f"hyperparameters are latent sites that the group must permute too), or {advice}"
        )
    return f"an activation is not odd, or {advice}" if check.action == FLIP else advice


def _advice_on_scales(check: GroupCheck, prior: str | None, axes: str) -> str:
    if prior is not None:
        return (
            f"the prior of site '{prior}' depends on another site that the group rescales: leave "
            "scale out of that site's axes"
        )
    if check.repair is not None:
        return check.repair
    return f"an activation is not homogeneous, or a scale is wrong or missing in {axes}"


def _moves(symmetry: GroupSpec, check: GroupCheck, axis: Axis) -> bool:
    actions = actions_of([a for axes in symmetry.spec[check.group].values() for a in axes])
    acting = [action for action in actions if action.verb == check.action]
    return check.action == PERMUTE or any(action.degree(axis) for action in acting)


def _mover(check: GroupCheck) -> str:
    mover = _MOVERS.get(check.action, f"to {check.action} a unit of ")
    return f"{mover}group '{check.group}'"


def _subject(check: GroupCheck) -> str:
    return "the likelihood" if check.action == RESCALE else "the log joint"
