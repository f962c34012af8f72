"""Which units of a guide overlap, so that a draw of one might have come from another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.estimators._coupled_groups import expected_pairs
from pyro_perm.permanent import bethe_permanent, permutation_marginals
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.whose_symmetry import symmetry_of
from pyro_perm.program.call import Call, refuse_shared_keywords
from pyro_perm.program.restoration import restored
from pyro_perm.sampling import draw_density

_MOST_UNITS_SUMMED = 10


@refuse_shared_keywords
@torch.no_grad()
def unit_overlap(
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 64,
    symmetry: PermutationSymmetry | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    r"""Probability that unit ``j`` of a draw belongs to factor ``i`` of the guide.

    ``P[i, j] = E_w[p(g(i) = j | w)]`` with ``p(g | w)`` proportional to ``q(g . w)``, the unit's
    own factor being ``i = j``, and other groups in place. The identity where units are apart, and
    ``1/n`` where they coincide. Where a group acts on each unit by itself, this is summed over what
    it does, and integrated over the scales that a guide is symmetrized over: units overlap where
    their orbits do. Exact up to 10 units, else by belief propagation; linearized where a group
    permutes two axes of one site.

    :param guide: an :class:`AutoSymmetrized`, or a plain autoguide with ``symmetry`` given.
    :param args: arguments of the model; ``kwargs`` likewise.
    :param num_samples: number of draws of the guide.
    :param symmetry: the group, for guides that are not symmetrized.
    :returns: group -> doubly stochastic matrix, shape ``(n, n)``.
    :raises ValueError: if there is no symmetry, or it does not fit, or no sample.
    :raises TypeError: if the guide cannot be symmetrized.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, but is {num_samples}")
    call = Call(guide, args, kwargs)
    with restored(guide, args, kwargs) as writes:
        with writes:
            group = symmetry_of(call, symmetry)
        densities = [draw_density(call, group) for _ in range(num_samples)]
    if not densities[0].factorizes:
        raise TypeError(
            "the base guide draws its sites jointly, so that no unit has a factor of its own: "
            "symmetrize an AutoNormal to see the overlap of its units"
        )
    return {
        name: torch.stack([_marginals(density, name) for density in densities]).mean(0)
        for name in group.spec
    }


def _marginals(density: Density, group: str) -> Tensor:
    factor = density.symmetry.factor(group)
    if not factor.permutes:
        return torch.eye(factor.size, dtype=torch.float64, device=density.device)
    pairs = expected_pairs(density, group, {})
    if pairs.shape[-1] <= _MOST_UNITS_SUMMED:
        return permutation_marginals(pairs)
    return bethe_permanent(pairs).marginals
