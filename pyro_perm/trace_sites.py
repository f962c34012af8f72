"""Run a base guide, permute what it draws, and account for the symmetrized density.

Shared by the guide and the loss. Everything happens in auxiliary sites of the guide's trace: one
site a group for the permutation, and one for ``log q^G(w) - log q(w)``, so that the guide's
log-probability is that of ``q^G`` whatever the loss. Their names end in that of the first model
site that they concern, so that several symmetrized parts of a guide do not collide.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.ops.provenance import get_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import InferDict, am_i_wrapped
from torch import Tensor

from pyro_perm.density.base_guides import base_node, read_density
from pyro_perm.density.base_guides.independent_normals import unconstrained_node
from pyro_perm.density.moved_delta import MovedDelta
from pyro_perm.estimators import Estimator
from pyro_perm.log_ratio import LogRatio
from pyro_perm.site_weight import SiteWeight, common_weight
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.uniform_permutation import UniformPermutation

AUXILIARY: InferDict = {"is_auxiliary": True}


class SymmetrizeMessenger(Messenger):
    """Permutes the model sites that a base guide returns, and records the base guide's sites.

    :param symmetry: the symmetry; needed where there are permutations.
    :param permutations: group -> permutation, shape ``(*batch, n)``; empty to record only.

    Attributes:
        sites: name -> what the base guide drew.
        weights: name -> how the handlers inside of this one weigh its log-density.
    """

    def __init__(
        self,
        symmetry: SymmetryGroup | None = None,
        permutations: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.symmetry = symmetry
        self.permutations = permutations or {}
        self.sites: dict[str, Any] = {}
        self.weights: dict[str, SiteWeight] = {}

    @property
    def counts(self) -> bool:
        """Whether the log-density of any site counts, in the eyes of the handlers inside."""
        return any(weight.mask is not False for weight in self.weights.values())

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        # Outer handlers, which weigh what is added outside of the base guide too, come later.
        self.weights[name] = SiteWeight(msg["scale"], msg["mask"])
        if self.symmetry is None or not self.permutations or msg["is_observed"]:
            return
        if name not in self.symmetry.sites:
            return
        if isinstance(fn, dist.Delta):
            drawn = fn.v
        else:  # The base samples the model site itself: its density moves to an auxiliary site.
            drawn = pyro.sample(unconstrained_node(name), fn, infer=AUXILIARY)
        move = partial(permute_site, self.symmetry, self.permutations, name)
        msg["fn"] = MovedDelta(drawn, fn, move)

    def _pyro_post_sample(self, msg: Any) -> None:
        self.sites[msg["name"]] = msg


def sample_permutations(symmetry: SymmetryGroup) -> dict[str, Tensor]:
    """Draw a uniform permutation of each group at an auxiliary site, of log-density zero."""
    signed = symmetry.signed_groups
    return {
        group: pyro.sample(
            permutation_site(symmetry, group),
            UniformPermutation(size, signed=group in signed),
            infer=AUXILIARY,
        )
        for group, size in symmetry.groups.items()
    }


def permutation_site(symmetry: SymmetryGroup, group: str) -> str:
    """Name of the auxiliary site that holds a group's permutation."""
    return f"{group}_permutation.{next(iter(symmetry.spec[group]))}"


def log_ratio_site(symmetry: SymmetryGroup) -> str:
    """Name of the auxiliary site that holds ``log q^G(w) - log q(w)``."""
    return f"log_ratio_symmetrized.{symmetry.sites[0]}"


def log_ratio_nodes(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The sites of a guide that hold ``log q^G(w) - log q(w)``, one for each symmetrized part."""
    return {name: node for name, node in nodes.items() if isinstance(node.get("fn"), LogRatio)}


def permute_site(
    symmetry: SymmetryGroup, permutations: Mapping[str, Tensor], site: str, value: Tensor
) -> Tensor:
    """Apply permutations that were drawn outside of the model's plates to one site."""
    plates = symmetry.site_plates(site)
    if not plates:
        return symmetry.apply(permutations, {site: value})[site]
    aligned = {}
    for group, permutation in permutations.items():
        batch = permutation.dim() - 1
        keep = permutation.shape[: max(batch - plates, 0)]
        aligned[group] = permutation.reshape(*keep, permutation.shape[-1])
    return symmetry.apply(aligned, {site: value})[site]


def add_log_ratio(
    drawn: SymmetrizeMessenger, symmetry: SymmetryGroup, estimator: Estimator
) -> None:
    """Add ``log q^G(w) - log q(w)`` to the guide's trace, weighed as the base guide's sites are.

    :param drawn: what the base guide drew.
    :raises ValueError: if handlers inside of the base guide weigh symmetric sites differently.
    :raises FloatingPointError: if the estimate is not finite.
    """
    if poutine.get_mask() is False or not am_i_wrapped():
        return  # Nobody asks for the density.
    nodes = {site: base_node(site, drawn.sites) for site in symmetry.sites}
    weight = common_weight({node: drawn.weights[node] for node in nodes.values()})
    if weight.mask is False:
        return
    log_ratio = LogRatio(
        read_density(drawn.sites, symmetry),
        estimator,
        dtype=drawn.sites[symmetry.sites[0]]["value"].dtype,
        provenance=get_provenance([drawn.sites[node]["value"] for node in nodes.values()]),
        without_rsample=[s for s, node in nodes.items() if not drawn.sites[node]["fn"].has_rsample],
    )
    weight.require_batched_as(log_ratio.batch_shape, nodes[symmetry.sites[0]])
    with weight.handlers():
        pyro.sample(log_ratio_site(symmetry), log_ratio, infer=AUXILIARY)
