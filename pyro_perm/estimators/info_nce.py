r"""The paper's estimator, Theorem 4.3 of Gelberg et al. (2024).

With ``w ~ q`` and ``g_1 ... g_{K-1}`` uniform,
``H_K = E[-log 1/K (q(w) + sum_j q(g_j^-1 w))] <= H(q^G)`` and ``I_K = H_K - H(q) <= I(g; w)``.

What groups do to each unit by itself, such as flips, needs no sampling: in place of ``q``
take its average over these actions of groups that share no site with each other, a product over
their units. It is a density with the same ``q^G``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.estimators import _costs
from pyro_perm.estimators._coupled_groups import marginals_at
from pyro_perm.estimators.estimator import Estimator, register_estimator, require_positive
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.separable import uncoupled_groups


@register_estimator
@dataclass(frozen=True)
class InfoNCE(Estimator):
    """Lower bound on ``I(g; w)`` from uniform permutations; it cannot exceed ``log K``.

    Groups that act on each unit by itself add up to ``n log |H|``, ``n log 2`` for flips.

    :param num_permutations: ``K``, the identity included.
    :raises ValueError: if it is not a positive int.
    """

    num_permutations: int

    is_lower_bound = True

    def __post_init__(self) -> None:
        require_positive("num_permutations", self.num_permutations)

    def cost(self, density: Density) -> float:
        """A gather for each permutation."""
        return _costs.all_unit_pairs(density) + self.num_permutations * _costs.entries(density)

    def log_ratio(self, density: Density) -> Tensor:
        """``log 1/K (1 + sum_j q(g_j w) / q(w))``."""
        ratios = uniform_log_ratios(density, self.num_permutations - 1)
        identity = ratios.new_zeros(1, *density.batch_shape)
        if density.symmetry.acting_groups:
            identity = identity + _log_images(density) - _log_volume(density)
        return torch.cat([identity, ratios]).logsumexp(0) - math.log(self.num_permutations)


def uniform_log_ratios(density: Density, num: int) -> Tensor:
    """``log q(g_j w) - log q(w)`` for independent uniform ``g_j``, shape ``(num, *batch)``."""
    shape = (num, *density.batch_shape)
    elements = density.symmetry.compact_part.sample(shape, device=density.device)
    if not elements:  # All that the groups do is summed over.
        ratio = torch.as_tensor(_log_images(density) - _log_volume(density))
        return ratio.expand(num, *density.batch_shape)
    ratios = density.log_ratio(elements)
    if density.symmetry.acting_groups:
        ratios = ratios + _log_images(marginals_at(density, elements)) - _log_volume(density)
    return ratios


def _log_images(density: Density) -> Tensor | float:
    """``log sum_h q(h . w) - log q(w)`` over the unit actions of groups that share no site."""
    spec = density.symmetry.spec
    return sum(density.log_mass(group, spec[group]) for group in _summable_groups(density.symmetry))


def _log_volume(density: Density) -> Tensor | float:
    """By what this sum is divided; the prior is the same at all permutations."""
    return sum(density.log_unit_volume(group) for group in _summable_groups(density.symmetry))


def _summable_groups(symmetry: SymmetryGroup) -> tuple[str, ...]:
    return uncoupled_groups(symmetry, symmetry.acting_groups)
