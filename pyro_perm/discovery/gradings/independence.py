"""Groups whose scales or signs do nothing that those of others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product

import torch

from pyro_perm.discovery.gradings.dataflow import Sites
from pyro_perm.discovery.gradings.linear_equations import Equations, Field, LinearForm
from pyro_perm.discovery.permutations.expressions import Reason
from pyro_perm.symmetry.axis import Axis

Shapes = Mapping[str, tuple[int, ...]]
Degree = Callable[[Axis], int]


def dependent_groups(
    spec: Mapping[str, Sites], shapes: Shapes, degree: Degree, field: Field
) -> list[str]:
    """The smallest groups without which the scales, or signs, of all groups act independently.

    In an ensemble, say, rescaling every member alike is the same as rescaling all of the units that
    its members share: an orbit would have infinitely many names for each of its points.

    :param spec: group -> site -> axes; all groups that rescale, or flip.
    :param shapes: shape of every site.
    :param degree: of the entries along an axis.
    :param field: of the degrees.
    """
    kept: dict[str, Sites] = {}
    dependent = []
    for group in sorted(spec, key=lambda name: -_num_units(spec[name], shapes)):
        if _act_independently({**kept, group: spec[group]}, shapes, degree, field):
            kept[group] = spec[group]
        else:
            dependent.append(group)
    return dependent


def _act_independently(
    spec: Mapping[str, Sites], shapes: Shapes, degree: Degree, field: Field
) -> bool:
    """Whether acting on the units of each group alike is trivial only if no group acts.

    Units of one group have different entries, so that nothing else can be trivial.
    """
    equations = Equations(field, len(spec))
    for site in dict.fromkeys(site for sites in spec.values() for site in sites):
        acting = [sites.get(site, ()) for sites in spec.values()]
        for form in _degrees_of_entries(acting, shapes[site], degree):
            equations.add(form, Reason("an entry that is left alone"))
    return not equations.has_solutions


def _degrees_of_entries(
    acting: Sequence[tuple[Axis, ...]], shape: tuple[int, ...], degree: Degree
) -> Iterator[LinearForm]:
    """The degrees of a site's entries under each of several groups, all that are different."""
    along = torch.zeros(
        len(shape), max(shape, default=1), len(acting), dtype=torch.long, device="cpu"
    )
    for k, axes in enumerate(acting):
        for axis in axes:
            along[axis.dim, axis.unit_coordinates(shape[axis.dim]).flatten(), k] += degree(axis)
    each = [along[dim, :length].unique(dim=0) for dim, length in enumerate(shape)]
    for combination in product(*each):
        yield tuple(Fraction(int(x)) for x in torch.stack(combination).sum(0))


def _num_units(sites: Sites, shapes: Shapes) -> int:
    site, (axis, *_) = next(iter(sites.items()))
    return axis.size(shapes[site][axis.dim])
