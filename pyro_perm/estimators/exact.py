r"""The exact ``log q^G(w)`` for small groups.

The sum over one group, the others held fixed, is the permanent of ``exp L``. So groups that share
no site are each a permanent, and the groups that couple them are enumerated around it:
``sum_g q(g w) = sum_{g enumerated} prod_l perm(exp L_l(g))``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from pyro_perm.estimators.coupling import separable_sites
from pyro_perm.estimators.density import FactorizedDensity
from pyro_perm.estimators.estimator import Estimator
from pyro_perm.permanent import log_permanent

MAX_UNITS = 16
MAX_ENUMERATED = 5040
_ENTRIES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Exact(Estimator):
    """Every permutation: the ground truth, for small groups.

    One group, or several that share no site, may have up to 16 units each; coupled groups are
    enumerated until those that are left share no site, up to 5040 elements.
    """

    is_lower_bound = True
    is_upper_bound = True

    def log_ratio(self, density: FactorizedDensity) -> Tensor:
        """``log 1/|G| sum_g q(g w) / q(w)``.

        :raises ValueError: if the group is too large; names the groups.
        """
        groups = density.symmetry.groups
        summed = _groups_by_permanent(density)
        enumerated = {group: size for group, size in groups.items() if group not in summed}
        order = math.prod(map(math.factorial, enumerated.values()))
        if order > MAX_ENUMERATED:
            raise ValueError(
                f"Exact would enumerate {order} elements of the groups {list(enumerated)}, more "
                f"than {MAX_ENUMERATED} (units: {groups}; groups that share no site may have "
                f"{MAX_UNITS} each); use Bethe to train and ImportanceSampled to evaluate"
            )
        subsets = 2 ** max((groups[group] for group in summed), default=0)
        at_once = max(1, _ENTRIES_AT_ONCE // (subsets * density.batch_shape.numel()))
        terms = [_log_sum(density, summed, chunk) for chunk in _elements(enumerated, at_once)]
        return torch.cat(terms).logsumexp(0) - density.symmetry.log_order


def _groups_by_permanent(density: FactorizedDensity) -> list[str]:
    """The largest groups that fit a permanent and share no entry with each other."""
    groups = density.symmetry.groups
    summed: list[str] = []
    for group in sorted(groups, key=lambda name: -groups[name]):
        others = frozenset(groups) - {*summed, group}
        sites = separable_sites(density.symmetry, group, others)
        if groups[group] <= MAX_UNITS and sites == tuple(density.symmetry.spec[group]):
            summed.append(group)
    return summed


def _log_sum(density: FactorizedDensity, summed: list[str], elements: dict[str, Tensor]) -> Tensor:
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
        pairs = moved.unit_pairs(group, density.symmetry.spec[group])
        total = total + log_permanent(pairs) - pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
    num = max((len(p) for p in elements.values()), default=1)
    return total.expand(num, *density.batch_shape)


def _elements(groups: dict[str, int], at_once: int) -> Iterator[dict[str, Tensor]]:
    """All elements of a product of symmetric groups, in batches of permutations ``(num, n)``."""
    tables = {group: _all_permutations(size) for group, size in groups.items()}
    orders = tuple(len(table) for table in tables.values())
    for chunk in torch.arange(math.prod(orders)).split(at_once):
        numbers = torch.unravel_index(chunk, orders) if orders else ()
        yield {
            group: table[number]
            for (group, table), number in zip(tables.items(), numbers, strict=True)
        }


@lru_cache
def _all_permutations(size: int) -> Tensor:
    return torch.tensor(list(permutations(range(size))))
