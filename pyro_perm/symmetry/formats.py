"""Permutation specs for other programs and for people: dictionaries, JSON, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import SiteShape
from pyro_perm.symmetry.factor import Factor
from pyro_perm.symmetry.group import SymmetryGroup
from pyro_perm.symmetry.spec import Spec

_FORMAT = "pyro_perm.PermutationSymmetry"
_WIDTH = 100
_NAMED_AXES = 6
_NO_BREAK = "\N{NO-BREAK SPACE}"


def spec_from_axes_to_perm(
    axes_to_perm: Mapping[str, Sequence[str | None]],
) -> dict[str, dict[str, tuple[Axis, ...]]]:
    """Group -> site -> axes, from git-re-basin's site -> group along each dimension.

    :raises TypeError: if a site has no sequence of names of groups, or None.
    """
    spec: dict[str, dict[str, tuple[Axis, ...]]] = {}
    for site, groups in axes_to_perm.items():
        _require_names(site, groups)
        for position, group in enumerate(groups):
            if group is not None:
                axes = spec.setdefault(group, {}).get(site, ())
                spec[group][site] = (*axes, Axis(position - len(groups)))
    return spec


def _require_names(site: str, groups: Any) -> None:
    is_sequence = isinstance(groups, Sequence) and not isinstance(groups, str)
    if not is_sequence or not all(isinstance(group, str | None) for group in groups):
        raise TypeError(
            f"site '{site}': give a tuple with a group or None for each dimension, such as "
            f"('P0', None) or ('P0',), in place of {groups!r}"
        )


def axes_to_perm(symmetry: SymmetryGroup) -> dict[str, tuple[str | None, ...]]:
    """Git-re-basin's dictionary: site -> group along each dimension, or None.

    :raises ValueError: for an axis that such a dictionary cannot express.
    """
    found: dict[str, tuple[str | None, ...]] = {}
    for site, shape in symmetry.shapes:
        groups: list[str | None] = [None] * len(shape.shape)
        for group, axis in symmetry.actions_on(site):
            if groups[axis.dim] is not None or axis != Axis(axis.dim):
                raise ValueError(
                    f"group '{group}', site '{site}': axis {axis} is structured, signed or shared "
                    "by several groups, which axes_to_perm cannot express; use to_json instead"
                )
            groups[axis.dim] = group
        found[site] = tuple(groups)
    return found


def to_json(spec: Spec, shapes: Mapping[str, SiteShape] | None, reasons: Mapping[str, str]) -> str:
    """A spec, the shapes of its sites if they are known, and reasons, as JSON."""
    document: dict[str, Any] = {
        "format": _FORMAT,
        "groups": {
            group: {
                site: [_axis_to_json(axis, group, site) for axis in axes]
                for site, axes in sites.items()
            }
            for group, sites in spec.items()
        },
        "shapes": None,
        "reasons": dict(reasons),
    }
    if shapes is not None:
        document["shapes"] = {site: asdict(shape) for site, shape in shapes.items()}
    return json.dumps(document, indent=2)


def from_json(
    text: str,
) -> tuple[dict[str, dict[str, tuple[Axis, ...]]], dict[str, SiteShape] | None, dict[str, str]]:
    """What :func:`to_json` was given.

    :raises ValueError: if the text is something else.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"this is not the JSON of a {_FORMAT}: write one with to_json()")
    spec = {
        group: {site: tuple(map(_axis_from_json, axes)) for site, axes in sites.items()}
        for group, sites in document["groups"].items()
    }
    shapes = document["shapes"] and {
        site: _shape_from_json(fields) for site, fields in document["shapes"].items()
    }
    return spec, shapes, document["reasons"]


def _shape_from_json(fields: Mapping[str, Any]) -> SiteShape:
    as_tuples: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
    }
    return SiteShape(**as_tuples)


def summary(symmetry: SymmetryGroup, spec: Spec, reasons: Mapping[str, str]) -> str:
    """A table of the groups, and why the other axes are not permuted, wrapped at 100 characters.

    An axis whose entries rescaling a unit by ``c`` multiplies by ``c^k`` is marked ``c^k``.
    """
    factors = {factor.name: factor for factor in symmetry.factors}
    legends = {action.legend: None for factor in symmetry.factors for action in factor.actions}
    rows = [("group", "size", "log n!", "axes")]
    if legends:
        rows = [("group", "size", "log order", f"axes ({', '.join(legends)})")]
    for group, sites in spec.items():
        factor = factors[group]
        names = (
            f"{_marks(factor, axis)}{site}[{axis.plain}]".replace(" ", _NO_BREAK)
            for site, axes in sites.items()
            for axis in axes
        )
        what = "" if factor.permutes else "units stay in place: "
        nats = f"{factor.log_compact_order:.1f}"
        rows.append((group, str(factor.size), nats, what + ", ".join(names)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for group, size, nats, axes in rows:
        start = f"{group:<{widths[0]}}  {size:>{widths[1]}}  {nats:>{widths[2]}}  "
        lines += _wrapped(axes, start, len(start) * " ")
    lines.append(_order(symmetry))
    if reasons:
        lines += ["", "not permuted:"]
        for explanation in explanations(reasons):
            lines += _wrapped(explanation, "  ", "    ")
    return "\n".join(lines)


def explanations(reasons: Mapping[str, str]) -> list[str]:
    """Why axes are not permuted, each reason once, with the first of its axes.

    :param reasons: axis -> reason.
    """
    axes_of: dict[str, list[str]] = {}
    for axis, reason in reasons.items():
        axes_of.setdefault(reason, []).append(axis)
    found = []
    for reason, axes in axes_of.items():
        more = len(axes) - _NAMED_AXES
        named = ", ".join(axes[:_NAMED_AXES]) + (f" and {more} more" if more > 0 else "")
        found.append(f"{named} {'is' if len(axes) == 1 else 'are'} fixed: {reason}")
    return found


def _order(symmetry: SymmetryGroup) -> str:
    """The order of the compact part, and the number of dimensions of what is not compact."""
    order = f"log |G| = {sum(factor.log_compact_order for factor in symmetry.factors):.1f} nats"
    numbers: dict[str, int] = {}
    for factor in symmetry.factors:
        for action in factor.actions:
            if not action.is_compact:
                numbers[action.name] = numbers.get(action.name, 0) + factor.size
    return ", ".join([order, *(f"{number} {name}s" for name, number in numbers.items())])


def _marks(factor: Factor, axis: Axis) -> str:
    return "".join(action.mark(axis) for action in reversed(factor.actions))


def _wrapped(text: str, start: str, indent: str) -> list[str]:
    """Lines of a paragraph: how the first one starts, and what the others are indented by."""
    lines = wrap(
        text,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _axis_to_json(axis: Axis, group: str, site: str) -> dict[str, Any]:
    if type(axis) is not Axis:
        raise ValueError(
            f"group '{group}', site '{site}': {axis} is a {type(axis).__name__}, an axis of an "
            "action of your own, which the format does not know; write what makes the symmetry to "
            "a file in its place, and the guide's parameters with pyro.get_param_store().save()"
        )
    index = axis.index
    written: Any = index
    if isinstance(index, range):
        written = {"start": index.start, "stop": index.stop, "step": index.step}
    fields = {"dim": axis.dim, "outer": axis.outer, "inner": axis.inner, "index": written}
    degrees = {"sign": axis.sign, "scale": axis.scale, "permute": axis.permute}
    unusual = {name: value for name, value in degrees.items() if value != getattr(Axis(0), name)}
    return fields | unusual


def _axis_from_json(fields: Mapping[str, Any]) -> Axis:
    index = fields["index"]
    if isinstance(index, dict):
        index = range(index["start"], index["stop"], index["step"])
    elif index is not None:
        index = tuple(index)
    return Axis(**{**fields, "index": index})
