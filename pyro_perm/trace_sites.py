"""Run a base guide, permute what it draws, and account for the symmetrized density.

Shared by the guide and the loss. Everything happens in auxiliary sites of the guide's trace: one
site a group for the permutation, and one factor for ``log q^G(w) - log q(w)``, so that the guide's
log-probability is that of ``q^G`` whatever the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import InferDict, am_i_wrapped
from torch import Tensor

from pyro_perm.density.base_sites import read_density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import Estimator
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.elements import AnyElement, Elements, transform
from pyro_perm.uniform_permutation import PERMUTATION, join_parts, uniform_parts

LOG_RATIO_SITE = "log_ratio_symmetrized"
AUXILIARY: InferDict = {"is_auxiliary": True}


class SymmetrizeMessenger(Messenger):
    """Permutes the model sites that a base guide returns, and records the base guide's sites.

    :param symmetry: the symmetry; needed where there are permutations.
    :param permutations: group -> permutation or element, shape ``(*batch, n)``; empty to record
        only.
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

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if self.symmetry is None or not self.permutations or msg["is_observed"]:
            return
        if name not in self.symmetry.sites:
            return
        if not isinstance(fn, dist.Delta):
            # The base samples the model site itself: its density moves to an auxiliary site.
            value = pyro.sample(f"{name}_unconstrained", fn, infer=AUXILIARY)
            fn = dist.Delta(value, event_dim=fn.event_dim)
        moved = permute_site(self.symmetry, self.permutations, name, fn.v)
        # The base guide's own Delta has been validated.
        msg["fn"] = _Moved(moved, fn.log_density, fn.event_dim, validate_args=False)

    def _pyro_post_sample(self, msg: Any) -> None:
        self.sites[msg["name"]] = msg


class _Moved(dist.Delta):
    """A Delta that does not compare its own value, entry by entry, with itself."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        value: Tensor = super().rsample(torch.Size(sample_shape)) if sample_shape else self.v
        return value

    def log_prob(self, x: Tensor) -> Tensor:
        own = x is self.v
        log_prob: Tensor = self.log_density.expand(self.batch_shape) if own else super().log_prob(x)
        return log_prob


def sample_permutations(
    symmetry: SymmetryGroup, device: torch.device | None = None
) -> dict[str, AnyElement]:
    """Draw a uniform element of each group at auxiliary sites, of log-density zero.

    One site holds its permutation, with signs; what else it does to units has a site of its own.
    """
    return {
        factor.name: join_parts(
            factor,
            {
                part: pyro.sample(element_site(factor.name, part), distribution, infer=AUXILIARY)
                for part, distribution in uniform_parts(factor, device).items()
            },
        )
        for factor in symmetry.factors
    }


def traced_permutations(trace: Any, symmetry: SymmetryGroup) -> dict[str, AnyElement]:
    """The elements that a guide drew, read off its trace; empty if it drew none."""
    return {
        factor.name: join_parts(
            factor,
            {
                part: trace.nodes[element_site(factor.name, part)]["value"]
                for part in uniform_parts(factor)
            },
        )
        for factor in symmetry.factors
        if element_site(factor.name) in trace.nodes
    }


def element_site(group: str, part: str = PERMUTATION) -> str:
    """Name of the auxiliary site that holds one part of a group's element."""
    return f"{group}_{part}"


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


def add_log_ratio(sites: Mapping[str, Any], symmetry: SymmetryGroup, estimator: Estimator) -> None:
    """Add the factor ``log q^G(w) - log q(w)`` to the guide's trace.

    :param sites: the base guide's sites, before permutation.
    :raises FloatingPointError: if the estimate is not finite.
    """
    if poutine.get_mask() is False or not am_i_wrapped():
        return  # Nobody asks for the density.
    log_ratio = log_ratio_of(read_density(sites, symmetry), estimator)
    node = sites[symmetry.sites[0]]
    batch = log_ratio.shape
    if batch:
        plates = max(symmetry.site_plates(site) for site in symmetry.sites)
        log_ratio = log_ratio.reshape(*batch, *(1,) * plates)
    # What it holds has been checked.
    log_ratio = log_ratio.to(node["value"].dtype)
    factor = dist.Unit(log_ratio, has_rsample=True, validate_args=False)
    infer: Any = {**AUXILIARY, "symmetrization": (symmetry, estimator)}
    pyro.sample(LOG_RATIO_SITE, factor, obs=factor.sample(), infer=infer)


def log_ratio_of(density: FactorizedDensity, estimator: Estimator) -> Tensor:
    """``log q^G(w) - log q(w)`` of every draw, shape ``(*batch)``, in nats.

    :raises FloatingPointError: if the estimate is not finite.
    """
    log_ratio = estimator.log_ratio(density)
    # This waits for the device, as Pyro's validation of distributions does: one switch for both.
    validate = is_validation_enabled() and not torch._C._get_tracing_state()
    if validate and not math.isfinite(log_ratio.sum().item()):
        raise FloatingPointError(
            f"{estimator} found log q^G(w) - log q(w) = {log_ratio.tolist()}: the base guide's "
            "parameters have diverged, or its scales underflowed; try a lower learning rate"
        )
    return log_ratio
