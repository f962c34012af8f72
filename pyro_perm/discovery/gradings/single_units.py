"""Layers of a single unit, which nothing permutes, but which may flip its sign or be rescaled.

Whatever acts on such a unit acts on whole sites, and only the equations for their degrees tell
which sites belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from pyro_perm.discovery.gradings.dataflow import Sites
from pyro_perm.discovery.gradings.independence import Shapes
from pyro_perm.symmetry.axis import Axis


def sites_of_single_units(shapes: Shapes) -> Sites:
    """Sites that a single unit may have an axis in, each with an axis that all of it lies along."""
    return {site: (Axis(_dims(shape)[0]),) for site, shape in shapes.items() if _dims(shape)}


def single_unit_groups(
    units: Iterable[Mapping[str, int]], shapes: Shapes, axis_of: Callable[[int, int], Axis]
) -> Iterator[dict[str, tuple[Axis, ...]]]:
    """A group for each unit; units that share a site have axes of their own there, if it has some.

    :param units: for each, site -> degree.
    :param shapes: site -> shape.
    :param axis_of: the axis along a dimension, whose entries have some degree.
    """
    dims = {site: _dims(shape) for site, shape in shapes.items()}
    for unit in units:
        yield {site: (axis_of(dims[site][0], degree),) for site, degree in unit.items()}
        for site in unit:
            dims[site] = dims[site][1:] or dims[site]


def _dims(shape: tuple[int, ...]) -> list[int]:
    """The dimensions of length one, counted from the right."""
    return [dim - len(shape) for dim, length in enumerate(shape) if length == 1]
