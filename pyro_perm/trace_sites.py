"""Run a base guide, permute what it draws, and account for the symmetrized density.

Shared by the guide and the loss. Everything happens in auxiliary sites of the guide's trace: one
site a group for the permutation, and one for ``log q^G(w) - log q(w)``, so that the guide's
log-probability is that of ``q^G`` whatever the loss. Their names end in that of the first model
site that they concern, so that several symmetrized parts of a guide do not collide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.provenance import ProvenanceTensor, get_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import InferDict, am_i_wrapped
from torch import Tensor

from pyro_perm.density.base_guides import density_of, read_sites
from pyro_perm.density.base_guides.independent_normals import unconstrained_node
from pyro_perm.density.moved_delta import MovedDelta
from pyro_perm.density.rescaled_priors import Priors
from pyro_perm.estimators import Estimator
from pyro_perm.log_ratio import LogRatio
from pyro_perm.site_weight import SiteWeight, common_weight
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.elements import AnyElement, Elements, transform
from pyro_perm.symmetry.factor import Factor
from pyro_perm.uniform_permutation import PERMUTATION, join_parts, uniform_parts

AUXILIARY: InferDict = {"is_auxiliary": True}


class SymmetrizeMessenger(Messenger):
    """Permutes the model sites that a base guide returns, and records the base guide's sites.

    :param symmetry: the symmetry; needed where there are permutations.
    :param permutations: group -> permutation or element, shape ``(*batch, n)``; empty to record
        only.

    Attributes:
        sites: name -> what the base guide drew.
        weights: name -> how the handlers inside of this one weigh its log-density.
        log_prior_change: ``log p(w') - log p(w)`` where ``w'`` is ``w`` with its units rescaled,
            shape ``(*batch)``, in nats; None where they are not.
    """

    def __init__(
        self,
        symmetry: SymmetryGroup | None = None,
        permutations: Elements | None = None,
    ) -> None:
        super().__init__()
        self.symmetry = symmetry
        self.permutations = permutations or {}
        self.sites: dict[str, Any] = {}
        self.weights: dict[str, SiteWeight] = {}
        self.log_prior_change: Tensor | None = None

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


def sample_permutations(
    symmetry: SymmetryGroup, device: torch.device | None = None
) -> dict[str, AnyElement]:
    """Draw a uniform element of each group at auxiliary sites, of log-density zero.

    One site holds its permutation, with signs; what else it does to units has a site of its own.
    """

    def sample(factor: Factor) -> AnyElement:
        parts = {}
        for part, distribution in uniform_parts(factor, device).items():
            site = element_site(symmetry, factor.name, part)
            parts[part] = pyro.sample(site, distribution, infer=AUXILIARY)
        return join_parts(factor, parts)

    return {factor.name: sample(factor) for factor in symmetry.factors}


def element_site(symmetry: SymmetryGroup, group: str, part: str = PERMUTATION) -> str:
    """Name of the auxiliary site that holds one part of a group's element."""
    return f"{group}_{part}.{next(iter(symmetry.spec[group]))}"


def log_ratio_site(symmetry: SymmetryGroup) -> str:
    """Name of the auxiliary site that holds ``log q^G(w) - log q(w)``."""
    return f"log_ratio_symmetrized.{symmetry.sites[0]}"


def log_ratio_nodes(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The sites of a guide that hold ``log q^G(w) - log q(w)``, one for each symmetrized part."""
    # Not isinstance, which is slow where a class has abstract ones above it: this is every step.
    return {name: node for name, node in nodes.items() if type(node.get("fn")) is LogRatio}


def permute_site(
    symmetry: SymmetryGroup, permutations: Elements, site: str, value: Tensor
) -> Tensor:
    """Apply elements that were drawn outside of the model's plates to one site."""
    plates = symmetry.site_plates(site)
    if not plates:
        return symmetry.apply(permutations, {site: value})[site]

    def without_plates(part: Tensor) -> Tensor:
        keep = part.shape[: max(part.dim() - 1 - plates, 0)]
        return part.reshape(*keep, part.shape[-1])

    aligned = {group: transform(without_plates, part) for group, part in permutations.items()}
    return symmetry.apply(aligned, {site: value})[site]


def add_log_ratio(
    drawn: SymmetrizeMessenger,
    symmetry: SymmetryGroup,
    estimator: Estimator,
    priors: Priors | None = None,
) -> None:
    """Add ``log q^G(w) - log q(w)`` to the guide's trace, weighed as the base guide's sites are.

    :param drawn: what the base guide drew.
    :param priors: those of the sites that are rescaled.
    :raises ValueError: if handlers inside of the base guide weigh symmetric sites differently.
    :raises FloatingPointError: if the estimate is not finite.
    """
    if poutine.get_mask() is False or not am_i_wrapped():
        return  # Nobody asks for the density.
    read = read_sites(drawn.sites, symmetry)
    weight = common_weight({site.node: drawn.weights[site.node] for site in read.values()})
    if weight.mask is False:
        return
    nodes = {name: drawn.sites[site.node] for name, site in read.items()}
    log_ratio = LogRatio(
        density_of(read, symmetry, priors),
        estimator,
        dtype=drawn.sites[symmetry.sites[0]]["value"].dtype,
        provenance=_provenance(node["value"] for node in nodes.values()),
        log_prior_change=drawn.log_prior_change,
        without_rsample=[name for name, node in nodes.items() if not node["fn"].has_rsample],
    )
    weight.require_batched_as(log_ratio.batch_shape, read[symmetry.sites[0]].node)
    with weight.handlers():
        pyro.sample(log_ratio_site(symmetry), log_ratio, infer=AUXILIARY)


def _provenance(values: Iterable[Tensor]) -> frozenset[str]:
    """What values depend on, where Pyro keeps track of that: in few steps."""
    tracked = (value for value in values if type(value) is ProvenanceTensor)
    return frozenset().union(*map(get_provenance, tracked))
