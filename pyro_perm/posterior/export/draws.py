"""Draws of a model's posterior and prior, and what the model says about each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import MCMC
from torch import Tensor
from tqdm.auto import tqdm

from pyro_perm.density.base_guides import read_density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import Estimator
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.log_ratio import log_ratio_of
from pyro_perm.posterior.bounds.intervals import draw_density, symmetry_of
from pyro_perm.program.full_data import Site, log_joint, run
from pyro_perm.program.vectorized import DrawMapper, Groups, Values
from pyro_perm.trace_sites import SymmetrizeMessenger

Program = Callable[..., Any]
_PAIRS_AT_ONCE = 2**23


class Call(NamedTuple):
    """A model, and what it is called with.

    Attributes:
        model: the model.
        args: its arguments, which are the guide's as well.
        kwargs: likewise.
    """

    model: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def guide_posterior(
    call: Call, guide: Program, sites: Mapping[str, Site], num_samples: int, map_draws: DrawMapper
) -> Groups:
    """Independent draws from a guide.

    :param sites: those of the model.
    :returns: groups ``posterior``, with the model's auxiliary sites, and ``sample_stats``, which
        has the density ``log_q``; shape ``(1, num_samples, ...)``.
    :raises ValueError: if the guide leaves out a latent site of the model, or there is none.
    """

    def draw(_: Values) -> Groups:
        return _with_density(run(guide, call.args, call.kwargs), sites)

    index = {"index": torch.arange(num_samples)}
    return _chains(map_draws(draw, index, description="posterior draws"), 1)


def symmetrized_posterior(
    call: Call,
    guide: AutoSymmetrized,
    sites: Mapping[str, Site],
    num_samples: int,
    map_draws: DrawMapper,
) -> Groups:
    """The same from a symmetrized guide: draws of its base, their units permuted at random.

    The estimators of ``log q^G`` decide by the numbers, which ``vmap`` forbids; they take batches.
    Only a base that draws its sites jointly goes one by one.
    """
    symmetry = symmetry_of(guide, None, call.model, call.args, call.kwargs)
    density = draw_density(guide.base, symmetry, call.args, call.kwargs)
    if not density.factorizes:
        return guide_posterior(call, guide, sites, num_samples, replace(map_draws, at_once=1))

    def draw(_: Values) -> Groups:
        with SymmetrizeMessenger() as base:
            drawn = run(guide.base, call.args, call.kwargs)
        return {**_with_density(drawn, sites), "base": read_density(base.sites, symmetry).values}

    index = {"index": torch.arange(num_samples)}
    groups = map_draws(draw, index, description="posterior draws")
    log_ratio = _log_ratio(guide.estimator, density, groups.pop("base"), map_draws)
    log_q = groups["sample_stats"]["log_q"]
    log_q += log_ratio.to(log_q)
    if guide.permute:
        permutations = symmetry.sample((num_samples,))
        groups["posterior"] = symmetry.apply(permutations, groups["posterior"])
    return _chains(groups, 1)


def mcmc_posterior(mcmc: MCMC, sites: Mapping[str, Site]) -> Groups:
    """The draws of an MCMC run, its chains kept apart.

    :param sites: those of the model.
    :returns: groups ``posterior`` and ``sample_stats``, which has ``diverging`` where the kernel
        tells; shape ``(num_chains, num_samples, ...)``.
    :raises ValueError: if it has not run, or has no draws of a latent site of the model.
    """
    if mcmc._samples is None:
        raise ValueError("the MCMC has no draws yet: call mcmc.run(...) first")
    samples = mcmc.get_samples(group_by_chain=True)
    _require_latents(sites, samples, "MCMC")
    divergences = mcmc.diagnostics().get("divergences")
    stats: Values = {}
    if divergences is not None:
        stats["diverging"] = torch.zeros(mcmc.num_chains, mcmc.num_samples, dtype=torch.bool)
        for chain, draws in enumerate(divergences.values()):
            stats["diverging"][chain, draws] = True
    return {
        "posterior": {name: samples[name] for name in sites if name in samples},
        "sample_stats": stats,
    }


def evaluate(call: Call, sites: Mapping[str, Site], drawn: Groups, map_draws: DrawMapper) -> Groups:
    """What the model says about draws of its posterior.

    :param sites: those of the model.
    :param drawn: groups ``posterior`` and ``sample_stats``, shape ``(chains, draws, ...)``.
    :returns: the same, without auxiliary sites, and with the log joint density ``lp`` among the
        statistics; and groups ``posterior_predictive`` and ``log_likelihood``, of each observation;
        in nats.
    """
    observed = [name for name, site in sites.items() if site.is_observation]

    def evaluated(values: Values) -> Groups:
        given = run(call.model, call.args, call.kwargs, values)
        predicted = run(poutine.uncondition(call.model), call.args, call.kwargs, values)
        return {
            "posterior_predictive": {name: predicted[name].value for name in observed},
            "log_likelihood": {name: given[name].log_prob for name in observed},
            "sample_stats": {"lp": log_joint(given)},
        }

    posterior = drawn["posterior"]
    num_chains = len(next(iter(posterior.values())))
    flat = {name: values.flatten(0, 1) for name, values in posterior.items()}
    groups = _chains(map_draws(evaluated, flat, description="posterior predictive"), num_chains)
    return {
        "posterior": {name: v for name, v in posterior.items() if sites[name].is_latent},
        **groups,
        "sample_stats": {**drawn["sample_stats"], **groups["sample_stats"]},
    }


def prior(call: Call, sites: Mapping[str, Site], num_samples: int, map_draws: DrawMapper) -> Groups:
    """Independent draws from the model itself.

    :param sites: those of the model.
    :returns: groups ``prior`` and ``prior_predictive``, shape ``(1, num_samples, ...)``.
    """

    def draw(_: Values) -> Groups:
        drawn = run(poutine.uncondition(call.model), call.args, call.kwargs)
        return {
            "prior": {name: drawn[name].value for name in sites if sites[name].is_latent},
            "prior_predictive": {
                name: drawn[name].value for name in sites if sites[name].is_observation
            },
        }

    index = {"index": torch.arange(num_samples)}
    return _chains(map_draws(draw, index, description="prior draws"), 1)


def _with_density(drawn: Mapping[str, Site], sites: Mapping[str, Site]) -> Groups:
    """The model's sites in one draw of a guide, and the draw's density."""
    _require_latents(sites, drawn, "guide")
    return {
        "posterior": {name: drawn[name].value for name in sites if name in drawn},
        "sample_stats": {"log_q": log_joint(drawn)},
    }


def _log_ratio(
    estimator: Estimator, density: FactorizedDensity, values: Values, map_draws: DrawMapper
) -> Tensor:
    """``log q^G(w) - log q(w)`` of many draws from one density, shape ``(draws,)``."""
    num = len(next(iter(values.values())))
    pairs = sum(size**2 for size in density.symmetry.groups.values())
    at_once = min(map_draws.at_once, max(1, _PAIRS_AT_ONCE // pairs))
    parts = []
    with tqdm(total=num, desc="log q^G", leave=False, disable=not map_draws.progress) as bar:
        for start in range(0, num, at_once):
            part = {site: value[start : start + at_once] for site, value in values.items()}
            size = min(at_once, num - start)
            batch = replace(density, values=part, batch_shape=torch.Size([size]))
            parts.append(log_ratio_of(batch, estimator))
            bar.update(size)
    return torch.cat(parts)


def _chains(groups: Groups, num_chains: int) -> Groups:
    return {
        group: {name: v.unflatten(0, (num_chains, -1)) for name, v in values.items()}
        for group, values in groups.items()
    }


def _require_latents(sites: Mapping[str, Site], drawn: Mapping[str, Any], source: str) -> None:
    latent = [name for name, site in sites.items() if site.is_latent]
    if not latent:
        raise ValueError("the model has no latent site, and so no posterior")
    missing = [name for name in latent if name not in drawn]
    if missing:
        raise ValueError(
            f"the {source} draws no {', '.join(map(repr, missing))}, so these latent sites of the "
            f"model have no posterior; marginalize them, or add them to the {source}"
        )
