r"""The exact ``log q^G(w)`` for small groups.

The sum over one group, the others held fixed, is the permanent of ``exp L``. So groups that share
no site are each a permanent, and the groups that couple them are enumerated around it:
``sum_g q(g w) = sum_{g enumerated} prod_l perm(exp L_l(g))``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import _costs
from pyro_perm.estimators._terms import Term
from pyro_perm.estimators.estimator import Estimator, register_estimator, require_served
from pyro_perm.permanent import log_permanent
from pyro_perm.symmetry.separable import uncoupled_groups

MAX_UNITS = 16
MAX_ENUMERATED = 5040
_ENTRIES_AT_ONCE = 2**22
# A logarithm and an exponential cost as much as these multiplications.
_COST_OF_A_TERM = 10
# Up to here a draw takes at most a sixth of a second.
_WORTH_COMPETING = 2**26


@register_estimator
@dataclass(frozen=True)
class Exact(Estimator):
    """Every permutation: the ground truth, for small groups.

    One group, or several that share no site, may have up to 16 units each; coupled groups are
    enumerated until those that are left share no site, up to 5040 elements.
    """

    is_lower_bound = True
    is_upper_bound = True
    method = "exact"

    def serves(self, density: FactorizedDensity) -> str | None:
        """Groups that are small enough."""
        enumerated = _enumerated_groups(density)
        order = _order(density, enumerated)
        if order <= MAX_ENUMERATED:
            return None
        return (
            f"would enumerate {order} elements of the groups {list(enumerated)}, more than "
            f"{MAX_ENUMERATED} (units: {density.symmetry.groups}; groups that share no site may "
            f"have {MAX_UNITS} each, if the base guide draws their sites independently); leave out "
            "estimator= for Bethe and certified bounds, or give ImportanceSampled"
        )

    def cost(self, density: FactorizedDensity) -> float:
        """A permanent for each element that is enumerated."""
        summed = _groups_by_permanent(density)
        sizes = [density.symmetry.groups[group] for group in summed]
        permanents = sum(_COST_OF_A_TERM * size * 2 ** (size - 1) for size in sizes)
        terms = [Term(group, tuple(density.symmetry.spec[group])) for group in summed]
        each = permanents + _costs.unit_pairs(density, terms) + _costs.entries(density)
        return float(_order(density, _enumerated_groups(density)) * each)

    @classmethod
    def candidates(cls, density: FactorizedDensity) -> Sequence[Exact]:
        """Itself where it serves at a cost that sampling would not undercut by much."""
        exact = cls()
        affordable = not exact.serves(density) and exact.cost(density) <= _WORTH_COMPETING
        return [exact] if affordable else []

    def log_ratio(self, density: FactorizedDensity) -> Tensor:
        """``log 1/|G| sum_g q(g w) / q(w)``.

        :raises ValueError: if the group is too large; names the groups.
        """
        require_served(self, density)
        groups, signed = density.symmetry.groups, density.symmetry.signed_groups
        summed, enumerated = _groups_by_permanent(density), _enumerated_groups(density)
        subsets = 2 ** max((groups[group] for group in summed), default=0)
        at_once = max(1, _ENTRIES_AT_ONCE // (subsets * density.batch_shape.numel()))
        tables = {group: _all_elements(size, group in signed) for group, size in enumerated.items()}
        terms = [_log_sum(density, summed, chunk) for chunk in _elements(tables, at_once)]
        return torch.cat(terms).logsumexp(0) - density.symmetry.log_order


def _groups_by_permanent(density: FactorizedDensity) -> tuple[str, ...]:
    """The largest groups that fit a permanent and share no entry with each other.

    None if the sites depend on each other.
    """
    if not density.factorizes:
        return ()
    fitting = (group for group, size in density.symmetry.groups.items() if size <= MAX_UNITS)
    return uncoupled_groups(density.symmetry, tuple(fitting))


def _enumerated_groups(density: FactorizedDensity) -> dict[str, int]:
    """The other groups, and their sizes."""
    summed = _groups_by_permanent(density)
    return {group: n for group, n in density.symmetry.groups.items() if group not in summed}


def _order(density: FactorizedDensity, groups: dict[str, int]) -> int:
    """Number of elements of the product of some groups."""
    signed = density.symmetry.signed_groups
    return math.prod(
        math.factorial(size) * (2**size if group in signed else 1) for group, size in groups.items()
    )


def _log_sum(
    density: FactorizedDensity, summed: tuple[str, ...], elements: dict[str, Tensor]
) -> Tensor:
    """``log sum_g q(g w) / q(w)`` over the summed groups, for many elements of the others.

    :param elements: permutations of the other groups, shape ``(num, *ones, n)``.
    :returns: shape ``(num, *batch)``.
    """
    elements = {
        group: p.reshape(len(p), *(1,) * len(density.batch_shape), -1)
        for group, p in elements.items()
    }
    moved = replace(density, values=density.symmetry.apply(elements, density.values))
    total = density.log_ratio(elements)
    for group in summed:
        sites = density.symmetry.spec[group]
        pairs = moved.unit_pairs(group, sites)
        total = total + log_permanent(pairs) - pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
        if group in density.symmetry.signed_groups:
            total = total + moved.log_flips(group, sites)
    num = max((len(p) for p in elements.values()), default=1)
    return total.expand(num, *density.batch_shape)


def _elements(tables: dict[str, Tensor], at_once: int) -> Iterator[dict[str, Tensor]]:
    """All elements of a product of groups, in batches of permutations ``(num, n)``.

    :param tables: group -> its elements, shape ``(order, n)``.
    """
    orders = tuple(len(table) for table in tables.values())
    for chunk in torch.arange(math.prod(orders)).split(at_once):
        numbers = torch.unravel_index(chunk, orders) if orders else ()
        yield {
            group: table[number]
            for (group, table), number in zip(tables.items(), numbers, strict=True)
        }


@lru_cache
def _all_elements(size: int, signed: bool) -> Tensor:
    all_permutations = torch.tensor(list(permutations(range(size))))
    if not signed:
        return all_permutations
    flips = torch.cartesian_prod(*[torch.tensor([False, True])] * size).reshape(-1, 1, size)
    return torch.where(flips, ~all_permutations, all_permutations).flatten(0, 1)
