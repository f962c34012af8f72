"""Priors that rescaled sites may have: independent entries that may take every real value."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch.distributions import constraints

from pyro_perm.program.program import Factor, Latent, Program
from pyro_perm.symmetry.binding import unwrapped

_WRAPPERS = (
    torch.distributions.Independent,
    dist.MaskedDistribution,
    dist.ExpandedDistribution,
)
_FAR = 1e6  # whose square is finite in single precision, summed over all entries


def unscalable_sites(program: Program) -> dict[str, str]:
    """Latent sites that no group may rescale because of their own prior, with the reasons.

    The posterior along an orbit is the prior's, restricted to it: this takes a density of
    independent entries with the whole real line as their support.
    """
    priors = program.run({}).factors
    reasons = {
        name: _why_not(name, latent, priors.get(name)) for name, latent in program.latents.items()
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _why_not(name: str, latent: Latent, factor: Factor | None) -> str | None:
    if not isinstance(unwrapped(latent.support), type(constraints.real)):
        return f"site '{name}' does not have the whole real line as its support"
    if factor is None:
        return None
    prior = latent.prior
    while isinstance(prior, _WRAPPERS):
        prior = prior.base_dist
    if prior is not None and prior.event_shape:
        return f"the prior of site '{name}' couples its entries"
    if not _vanishes_at_infinity(factor):
        return f"the prior of site '{name}' is no density on the whole real line, or masked"
    return None


def _vanishes_at_infinity(factor: Factor) -> bool:
    """Whether a log-density is finite everywhere, and smaller far away."""
    near = factor.log_density(factor.value)
    each = [factor.log_density(torch.full_like(factor.value, far)) for far in (-_FAR, _FAR)]
    return all(bool((far.isfinite() & (far < near)).all()) for far in each)
