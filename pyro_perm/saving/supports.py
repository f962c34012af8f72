"""Supports of sites as JSON: names of those that there are, and their bounds."""

from __future__ import annotations

from typing import Any

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.constraints import Constraint

_NAMED: dict[str, Constraint] = {
    name: getattr(constraints, name)
    for name in (
        *("real", "positive", "nonnegative", "unit_interval", "simplex", "sphere"),
        *("lower_triangular", "lower_cholesky", "corr_cholesky", "corr_matrix"),
        *("positive_definite", "positive_semidefinite", "symmetric"),
        *("ordered_vector", "positive_ordered_vector"),
        *("softplus_positive", "softplus_lower_cholesky", "unit_lower_cholesky"),
    )
}
_BOUNDED: dict[str, tuple[type[Constraint], tuple[str, ...]]] = {
    "greater_than": (constraints.greater_than, ("lower_bound",)),
    "greater_than_eq": (constraints.greater_than_eq, ("lower_bound",)),
    "less_than": (constraints.less_than, ("upper_bound",)),
    "interval": (constraints.interval, ("lower_bound", "upper_bound")),
    "half_open_interval": (constraints.half_open_interval, ("lower_bound", "upper_bound")),
}
_INDEPENDENT = "independent"


def describe_support(support: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A support as JSON.

    :param prefix: for the names of bounds that are tensors.
    :param tensors: takes up these bounds.
    :raises ValueError: if it is of a kind that is not known here.
    """
    if isinstance(support, constraints.independent):
        base = describe_support(support.base_constraint, prefix, tensors)
        return {
            "kind": _INDEPENDENT,
            "base": base,
            "ndims": support.reinterpreted_batch_ndims,
        }
    for name, known in _NAMED.items():
        if type(support) is type(known) and _same_bounds(support, known):
            return {"kind": name}
    for name, (kind, bounds) in _BOUNDED.items():
        if type(support) is kind:
            described: dict[str, Any] = {"kind": name}
            for bound in bounds:
                value = getattr(support, bound)
                if isinstance(value, Tensor):
                    tensors[f"{prefix}.{bound}"] = value
                    value = {"tensor": f"{prefix}.{bound}"}
                described[bound] = value
            return described
    raise ValueError(f"it has a support, {support}, that cannot be written down")


def support_of(described: dict[str, Any], tensors: dict[str, Tensor]) -> Constraint:
    """The support that :func:`describe_support` was given."""
    kind = described["kind"]
    if kind == _INDEPENDENT:
        return constraints.independent(support_of(described["base"], tensors), described["ndims"])
    if kind in _NAMED:
        return _NAMED[kind]
    constructor, bounds = _BOUNDED[kind]
    values = {}
    for bound in bounds:
        value = described[bound]
        values[bound] = tensors[value["tensor"]] if isinstance(value, dict) else float(value)
    return constructor(**values)


def _same_bounds(one: Constraint, other: Constraint) -> bool:
    bounds = vars(one), vars(other)
    return bounds[0].keys() == bounds[1].keys() and all(
        isinstance(value, int | float) and value == bounds[1][name]
        for name, value in bounds[0].items()
    )
