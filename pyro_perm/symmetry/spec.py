"""What a user may write of a symmetry: group -> site -> axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyro_perm.symmetry.actions import actions_of
from pyro_perm.symmetry.axis import Axis

AxisLike = int | Axis | Sequence["int | Axis"]
Spec = Mapping[str, Mapping[str, tuple[Axis, ...]]]

_FORM = "a spec is {group: {site: axis}}, such as {'hidden': {'fc1.weight': 0, 'fc2.weight': 1}}"


def read_spec(
    written: Mapping[str, Mapping[str, AxisLike]],
) -> dict[str, dict[str, tuple[Axis, ...]]]:
    """The spec, with a tuple of axes for each site.

    :raises ValueError: if a group is empty, does nothing, or permutes along some axes only.
    :raises TypeError: if something is no axis, or the spec no mapping of mappings.
    """
    _require_mappings(written)
    spec = {
        group: {site: _as_axes(group, site, axes) for site, axes in sites.items()}
        for group, sites in written.items()
    }
    for group, sites in spec.items():
        if not sites:
            raise ValueError(f"group '{group}' permutes no site: give it a {{site: axis}}")
        _require_one_kind(group, sites)
    return spec


def describe(sites: Mapping[str, tuple[Axis, ...]]) -> str:
    """One group's sites and axes, as its spec would be written."""
    each = (
        f"{site!r}: {axes[0] if len(axes) == 1 else '(' + ', '.join(map(str, axes)) + ')'}"
        for site, axes in sites.items()
    )
    return "{" + ", ".join(each) + "}"


def without_scales(sites: Mapping[str, tuple[Axis, ...]]) -> dict[str, tuple[Axis, ...]]:
    """One group's sites and axes if it did not rescale its units; none if it then does nothing."""
    plain = {site: tuple(replace(axis, scale=0) for axis in axes) for site, axes in sites.items()}
    each = [axis for axes in plain.values() for axis in axes]
    return plain if each[0].permute or actions_of(each) else {}


def _require_mappings(written: Any) -> None:
    if not isinstance(written, Mapping):
        raise TypeError(f"{_FORM}, but is a {type(written).__name__}")
    for group, sites in written.items():
        if not isinstance(sites, Mapping):
            raise TypeError(f"{_FORM}, but group '{group}' is given {sites!r}: name its sites")


def _as_axes(group: str, site: str, axes: AxisLike) -> tuple[Axis, ...]:
    each = axes if isinstance(axes, Sequence) and not isinstance(axes, str) else (axes,)
    for axis in each:
        if not isinstance(axis, int | Axis):
            raise TypeError(
                f"group '{group}', site '{site}': an axis is an int or an Axis, but is {axis!r}"
            )
    return tuple(axis if isinstance(axis, Axis) else Axis(axis) for axis in each)


def _require_one_kind(group: str, sites: Mapping[str, tuple[Axis, ...]]) -> None:
    """Refuse a group that permutes its units along some axes only."""
    for site, axes in sites.items():
        for axis in axes:
            first_site, (first, *_) = next(iter(sites.items()))
            if axis.permute != first.permute:
                raise ValueError(
                    f"group '{group}' permutes its units along axis "
                    f"{axis if axis.permute else first} of site "
                    f"'{site if axis.permute else first_site}', but not along axis "
                    f"{first if axis.permute else axis} of site "
                    f"'{first_site if axis.permute else site}': give all its axes the same permute="
                )
    each = [axis for axes in sites.values() for axis in axes]
    if not each[0].permute and not actions_of(each):
        raise ValueError(
            f"group '{group}' does nothing to its units: with permute=False it needs axes with "
            "sign= or scale="
        )
