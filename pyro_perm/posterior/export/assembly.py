"""ArviZ's object from plain arrays, in the form of the generation that is installed.

``InferenceData`` in ArviZ 0.x, an xarray ``DataTree`` in 1.x, with the same groups, variables,
dimensions and attributes. Nothing here needs torch or the rest of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Groups = Mapping[str, Mapping[str, NDArray[Any]]]
Dims = Mapping[str, Sequence[str | None]]
Coords = Mapping[str, ArrayLike]


def assemble(
    groups: Groups,
    *,
    dims: Dims,
    coords: Coords,
    attributes: Mapping[str, Mapping[str, Any]],
) -> Any:
    """Build ArviZ's object.

    :param groups: group -> variable -> array, shape ``(chain, draw, *shape)``, but ``shape`` in
        groups of data. Empty groups are left out.
    :param dims: variable -> names of the dimensions of ``shape``, from the left; where there is
        none, or None, it is ``{variable}_dim_{number}``.
    :param coords: dimension -> coordinates.
    :param attributes: group, or ``"/"`` for the whole -> attributes.
    :returns: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in ArviZ 1.x.
    :raises ValueError: if the dimensions or coordinates do not fit the variables.
    """
    # Importing pyro_perm shall not take the seconds that ArviZ takes.
    import arviz

    groups = {group: dict(variables) for group, variables in groups.items() if variables}
    arrays = {name: np.asarray(values) for name, values in coords.items()}
    names = _complete(groups, dims)
    _require_fitting(groups, names, arrays)
    options = {"dims": names, "coords": arrays}
    from_dict: Callable[..., Any] = arviz.from_dict  # Its signature is that of one generation.
    own = {group: dict(attributes[group]) for group in groups if group in attributes}
    if int(arviz.__version__.split(".")[0]) >= 1:
        data = from_dict(groups, attrs=own, **options)
    else:
        own = {f"{group}_attrs": values for group, values in own.items()}
        data = from_dict(**groups, **own, **options)
    data.attrs.update(attributes.get("/", {}))
    return data


def _complete(groups: Groups, dims: Dims) -> dict[str, list[str]]:
    """Names of all dimensions of all variables, the same in either generation."""
    ranks: dict[str, int] = {}
    for variable, shape in _shapes(groups):
        # The log-likelihood has no event dimensions, the observations of the same name have.
        ranks[variable] = max(len(shape), ranks.get(variable, 0))
    for variable, given in dims.items():
        if variable not in ranks:
            raise ValueError(f"dims names '{variable}', but the variables are {sorted(ranks)}")
        if len(given) > ranks[variable]:
            raise ValueError(
                f"dims names {list(given)} for '{variable}', whose dimensions besides chain and "
                f"draw number {ranks[variable]}"
            )
    complete = {}
    for variable, rank in ranks.items():
        given = [*dims.get(variable, ()), *[None] * rank][:rank]
        names = [name or f"{variable}_dim_{i}" for i, name in enumerate(given)]
        if len({"chain", "draw", *names}) < len(names) + 2:
            raise ValueError(
                f"dims names {names} for '{variable}': the names of a variable must differ from "
                "each other, and from chain and draw"
            )
        complete[variable] = names
    return complete


def _require_fitting(
    groups: Groups, dims: Mapping[str, Sequence[str]], coords: Mapping[str, NDArray[Any]]
) -> None:
    """Refuse coordinates of no dimension, and of another length than their dimension."""
    used = {name for names in dims.values() for name in names}
    for name in coords:
        if name not in used:
            raise ValueError(f"coords names '{name}', but the dimensions are {sorted(used)}")
    for variable, shape in _shapes(groups):
        for name, length in zip(dims[variable], shape, strict=False):
            if name in coords and len(coords[name]) != length:
                raise ValueError(
                    f"coords has {len(coords[name])} entries for dimension '{name}', which has "
                    f"length {length} in '{variable}'"
                )


def _shapes(groups: Groups) -> Iterator[tuple[str, tuple[int, ...]]]:
    """All variables, and their shapes without chain and draw."""
    for group, variables in groups.items():
        for variable, values in variables.items():
            yield variable, values.shape if "data" in group else values.shape[2:]
