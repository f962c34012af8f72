r"""The exact ``log q^G(w)`` for small groups.

The sum over one group, the others held fixed, is the permanent of ``exp L``. So groups that share
no site are each a permanent, and the groups that couple them are enumerated around it:
``sum_g q(g w) = sum_{g enumerated} prod_l perm(exp L_l(g))``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.estimators import _costs
from pyro_perm.estimators._terms import Term
from pyro_perm.estimators.estimator import Estimator, register_estimator, require_served
from pyro_perm.permanent import log_permanent
from pyro_perm.symmetry.elements import AnyElement, Elements, transform
from pyro_perm.symmetry.factor import Factor
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
    is_deterministic = True
    method = "exact"

    def serves(self, density: Density) -> str | None:
        """Groups that are small enough."""
        enumerated = _enumerated_groups(density)
        order = _order(enumerated)
        if order <= MAX_ENUMERATED:
            return None
        names = [factor.name for factor in enumerated]
        return (
            f"would enumerate {order} elements of the groups {names}, more than {MAX_ENUMERATED} "
            f"(units: {dict(density.symmetry.groups)}; groups that share no site may have "
            f"{MAX_UNITS} each, if the base guide draws their sites independently); leave out "
            "estimator= for Bethe and certified bounds, or give ImportanceSampled"
        )

    def cost(self, density: Density) -> float:
        """A permanent for each element that is enumerated."""
        summed = _groups_by_permanent(density)
        factors = [density.symmetry.factor(group) for group in summed]
        sizes = [factor.size for factor in factors if factor.permutes]
        permanents = sum(_COST_OF_A_TERM * size * 2 ** (size - 1) for size in sizes)
        terms = [Term(group, tuple(density.symmetry.spec[group])) for group in summed]
        each = permanents + _costs.unit_pairs(density, terms) + _costs.entries(density)
        return float(_order(_enumerated_groups(density)) * each)

    @classmethod
    def candidates(cls, density: Density) -> Sequence[Exact]:
        """Itself where it serves at a cost that sampling would not undercut by much."""
        exact = cls()
        affordable = not exact.serves(density) and exact.cost(density) <= _WORTH_COMPETING
        return [exact] if affordable else []

    def log_ratio(self, density: Density) -> Tensor:
        """``log 1/|G| sum_g q(g w) / q(w)``.

        :raises ValueError: if the group is too large; names the groups.
        """
        require_served(self, density)
        groups, log_volume = density.symmetry.groups, density.log_volume
        summed, enumerated = _groups_by_permanent(density), _enumerated_groups(density)
        permuted = (groups[g] for g in summed if density.symmetry.factor(g).permutes)
        subsets = 2 ** max(permuted, default=0)
        at_once = max(1, _ENTRIES_AT_ONCE // (subsets * density.batch_shape.numel()))
        terms = [_log_sum(density, summed, chunk) for chunk in _elements(enumerated, at_once)]
        return torch.cat(terms).logsumexp(0) - log_volume


def _groups_by_permanent(density: Density) -> tuple[str, ...]:
    """The largest groups that fit a permanent and share no entry with each other.

    None if the sites depend on each other.
    """
    if not density.factorizes:
        return ()
    factors = density.symmetry.factors
    fitting = (f.name for f in factors if f.size <= MAX_UNITS or not f.permutes)
    return uncoupled_groups(density.symmetry, tuple(fitting))


def _enumerated_groups(density: Density) -> list[Factor]:
    """The other groups."""
    summed = _groups_by_permanent(density)
    return [factor for factor in density.symmetry.factors if factor.name not in summed]


def _order(groups: Iterable[Factor]) -> float:
    """Number of elements of the product of some groups."""
    return math.prod(factor.order for factor in groups)


def _log_sum(density: Density, summed: tuple[str, ...], elements: Elements) -> Tensor:
    """``log sum_g q(g w) / q(w)`` over the summed groups, for many elements of the others.

    :param elements: elements of the other groups, shape ``(num, n)``.
    :returns: shape ``(num, *batch)``.
    """
    batched = (slice(None), *[None] * len(density.batch_shape))
    element = {
        group: transform(lambda part: part[batched].to(density.device), table)
        for group, table in elements.items()
    }
    moved = replace(density, values=density.symmetry.apply(element, density.values))
    total = density.log_ratio(element)
    for group in summed:
        sites = density.symmetry.spec[group]
        factor = density.symmetry.factor(group)
        if factor.permutes:
            pairs = moved.unit_pairs(group, sites)
            total = total + log_permanent(pairs) - pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
        if factor.actions:
            total = total + moved.log_mass(group, sites)
    return total.expand(-1 if elements else 1, *density.batch_shape)


def _elements(groups: Sequence[Factor], at_once: int) -> Iterator[dict[str, AnyElement]]:
    """All elements of a product of groups, in batches of shape ``(num, n)``."""
    tables = {factor.name: factor.elements() for factor in groups}
    # Not the tables' shapes, which are no numbers under torch.jit.trace.
    orders = tuple(int(factor.order) for factor in groups)
    for chunk in torch.arange(math.prod(orders), device="cpu").split(at_once):
        numbers = torch.unravel_index(chunk, orders) if orders else ()
        yield {
            group: transform(partial(_select, number), table)
            for (group, table), number in zip(tables.items(), numbers, strict=True)
        }


def _select(numbers: Tensor, table: Tensor) -> Tensor:
    return table[numbers]
