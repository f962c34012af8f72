"""ArviZ's object from plain arrays, in the form of the generation that is installed.

``InferenceData`` in ArviZ 0.x, an xarray ``DataTree`` in 1.x, with the same datasets, variables,
dimensions and attributes. ArviZ's own ``from_dict`` gives a variable the same dimensions in all
datasets, which an argument of the model need not share with an observed site of its name. Nothing
here needs torch or the rest of the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from xarray import Dataset

Datasets = Mapping[str, Mapping[str, NDArray[Any]]]
Dims = Mapping[str, Sequence[str | None]]
Coords = Mapping[str, ArrayLike]

_EVERYWHERE = "/"
DRAW_DIMS = ["chain", "draw"]


def assemble(
    datasets: Datasets,
    *,
    dims: Mapping[str, Dims],
    coords: Coords,
    attributes: Mapping[str, Mapping[str, Any]],
) -> Any:
    """Build ArviZ's object.

    :param datasets: dataset -> variable -> array, shape ``(chain, draw, *shape)``, but ``shape`` in
        datasets of data. Empty ones are left out.
    :param dims: dataset, or ``"/"`` for all -> variable -> names of the dimensions of ``shape``,
        from the left, of which a variable takes as many as it has; where there is none, or None, it
        is ``{variable}_dim_{number}``.
    :param coords: dimension -> coordinates, in place of ``0, 1, ...``.
    :param attributes: dataset, or ``"/"`` for the whole -> attributes.
    :returns: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in ArviZ 1.x.
    :raises ValueError: if the dimensions or coordinates do not fit the variables.
    """
    # Importing pyro_perm shall not take the seconds that ArviZ takes.
    import arviz
    import xarray

    datasets = {name: dict(variables) for name, variables in datasets.items() if variables}
    arrays = {name: np.asarray(values) for name, values in coords.items()}
    _require_known(datasets, dims.get(_EVERYWHERE, {}))
    named = {
        dataset: {
            variable: _names(dataset, variable, values, dims)
            for variable, values in variables.items()
        }
        for dataset, variables in datasets.items()
    }
    _require_fitting(datasets, named, arrays)
    made = {"created_at": datetime.now(timezone.utc).isoformat()}
    made["arviz_version"] = arviz.__version__
    built = {
        dataset: _dataset(variables, named[dataset], arrays).assign_attrs(
            {**made, **attributes.get(dataset, {})}
        )
        for dataset, variables in datasets.items()
    }
    if int(arviz.__version__.split(".")[0]) >= 1:
        data = xarray.DataTree.from_dict(built)
    else:
        inference_data: Any = arviz.InferenceData  # Its signature is that of one generation.
        data = inference_data(**built)
    data.attrs.update(attributes.get(_EVERYWHERE, {}))
    return data


def _dataset(
    variables: Mapping[str, NDArray[Any]],
    names: Mapping[str, Sequence[str]],
    coords: Mapping[str, NDArray[Any]],
) -> Dataset:
    """The variables, and coordinates along all of their dimensions."""
    from xarray import Dataset

    lengths = {
        name: length
        for variable, values in variables.items()
        for name, length in zip(names[variable], values.shape, strict=True)
    }
    return Dataset(
        {variable: (names[variable], values) for variable, values in variables.items()},
        coords={name: coords.get(name, np.arange(length)) for name, length in lengths.items()},
    )


def _names(
    dataset: str, variable: str, values: NDArray[Any], dims: Mapping[str, Dims]
) -> list[str]:
    """Names of all dimensions of a variable, the same in either generation."""
    of_draws = _draw_dims(dataset)
    rank = values.ndim - len(of_draws)
    known = {**dims.get(_EVERYWHERE, {}), **dims.get(dataset, {})}
    # The log-likelihood has no event dimensions, the observations of the same name have.
    given = [*known.get(variable, ()), *[None] * rank][:rank]
    names = [*of_draws, *(name or f"{variable}_dim_{i}" for i, name in enumerate(given))]
    if len({*DRAW_DIMS, *names}) < rank + len(DRAW_DIMS):
        raise ValueError(
            f"dims names {names[len(of_draws) :]} for '{variable}': the names of a variable must "
            "differ from each other, and from chain and draw"
        )
    return names


def _draw_dims(dataset: str) -> list[str]:
    return [] if "data" in dataset else DRAW_DIMS


def _require_known(datasets: Datasets, dims: Dims) -> None:
    """Refuse names for no variable, or for more dimensions than it has anywhere."""
    ranks: dict[str, int] = {}
    for dataset, variable, values in _variables(datasets):
        rank = values.ndim - len(_draw_dims(dataset))
        ranks[variable] = max(rank, ranks.get(variable, 0))
    for variable, given in dims.items():
        if variable not in ranks:
            raise ValueError(f"dims names '{variable}', but the variables are {sorted(ranks)}")
        if len(given) > ranks[variable]:
            raise ValueError(
                f"dims names {list(given)} for '{variable}', whose dimensions besides chain and "
                f"draw number {ranks[variable]}"
            )


def _require_fitting(
    datasets: Datasets,
    names: Mapping[str, Mapping[str, Sequence[str]]],
    coords: Mapping[str, NDArray[Any]],
) -> None:
    """Refuse coordinates of no dimension, variables that are one, and lengths that differ."""
    used = {name for named in names.values() for dims in named.values() for name in dims}
    for name in coords:
        if name not in used:
            raise ValueError(f"coords names '{name}', but the dimensions are {sorted(used)}")
    for dataset, variables in names.items():
        for variable in variables.keys() & {name for dims in variables.values() for name in dims}:
            raise ValueError(
                f"'{variable}' is a variable of {dataset} and a dimension too: give the dimension "
                "another name with dims=, or rename the site or argument"
            )
    lengths: dict[tuple[str, str], tuple[int, str]] = {}
    for dataset, variable, values in _variables(datasets):
        for name, length in zip(names[dataset][variable], values.shape, strict=True):
            if name in coords and len(coords[name]) != length:
                raise ValueError(
                    f"coords has {len(coords[name])} entries for dimension '{name}', which has "
                    f"length {length} in '{variable}'"
                )
            known, first = lengths.setdefault((dataset, name), (length, variable))
            if known != length:
                raise ValueError(
                    f"dimension '{name}' has length {known} in '{first}', but {length} in "
                    f"'{variable}': give one of them other names with dims="
                )


def _variables(datasets: Datasets) -> Iterator[tuple[str, str, NDArray[Any]]]:
    for dataset, variables in datasets.items():
        for variable, values in variables.items():
            yield dataset, variable, values
