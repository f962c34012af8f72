"""Draws of a model's posterior and prior, and what the model says about each of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import MCMC

from pyro_perm.guide import AutoSymmetrized
from pyro_perm.posterior.latents import (
    require_draws,
    require_no_others,
    sites_to_sum_out,
    together,
)
from pyro_perm.posterior.likelihood import Pointwise, pointwise
from pyro_perm.program.full_data import FullData
from pyro_perm.program.sites import SiteKind
from pyro_perm.program.vectorized import Datasets, DrawMapper, Values
from pyro_perm.sampling import draw_guide

Program = Callable[..., Any]


@dataclass(frozen=True)
class Export:
    """What of a model is exported.

    Attributes:
        model: the model.
        summed_out: its latent sites that the posterior leaves out, and that are summed out.
        functions: its sites that are functions of others.
        pointwise: its log-likelihood, by observation.
    """

    model: FullData
    summed_out: tuple[str, ...]
    functions: tuple[str, ...]
    pointwise: Pointwise

    @property
    def latent(self) -> list[str]:
        """Names of the latent sites that the posterior draws."""
        return [n for n in self.model.names(SiteKind.LATENT) if n not in self.summed_out]

    @property
    def observed(self) -> list[str]:
        """Names of the observed sites."""
        return self.model.names(SiteKind.OBSERVATION)


def guide_posterior(
    model: FullData, guide: FullData, num_samples: int, map_draws: DrawMapper
) -> Datasets:
    """Independent draws from a guide.

    :returns: ``posterior``, with the model's auxiliary sites, and ``sample_stats``, which has the
        density ``log_q``; shape ``(1, num_samples, ...)``.
    :raises ValueError: if the guide leaves out a latent site of the model that cannot be summed
        out, or draws what is none, or if there is none.
    """
    drawn = guide.names(SiteKind.LATENT, SiteKind.AUXILIARY)
    sites_to_sum_out(model, drawn, "the guide draws")
    require_no_others(model, guide)
    program = guide.call.program
    draw = program.draw_over if isinstance(program, AutoSymmetrized) else draw_guide
    known = model.names(SiteKind.LATENT, SiteKind.AUXILIARY)
    sites = [name for name in known if name in drawn]
    draws = draw(together(model, guide), sites, num_samples, map_draws)
    datasets = {"posterior": draws.values, "sample_stats": {"log_q": draws.log_q}}
    return _chains(datasets, 1)


def mcmc_posterior(model: FullData, mcmc: MCMC) -> Datasets:
    """The draws of an MCMC run, its chains kept apart.

    :returns: ``posterior`` and ``sample_stats``, which has ``diverging`` where the kernel tells;
        shape ``(num_chains, num_samples, ...)``.
    :raises ValueError: if it has not run, or has no draws of a latent site of the model that cannot
        be summed out.
    """
    require_draws(mcmc)
    samples = mcmc.get_samples(group_by_chain=True)
    sites_to_sum_out(model, samples, "the MCMC draws")
    divergences = mcmc.diagnostics().get("divergences")
    stats: Values = {}
    if divergences is not None:
        stats["diverging"] = torch.zeros(
            mcmc.num_chains, mcmc.num_samples, dtype=torch.bool, device="cpu"
        )
        for chain, draws in enumerate(divergences.values()):
            stats["diverging"][chain, draws] = True
    return {
        "posterior": {name: samples[name] for name in model.sites if name in samples},
        "sample_stats": stats,
    }


def choose_export(model: FullData, posterior: Values) -> Export:
    """What of the model there is to export, judged by one draw of its posterior.

    Warns of terms of the likelihood that belong to no observation, and of functions of sites that
    are summed out: neither can be exported.

    :param posterior: site -> draws, shape ``(chains, draws, ...)``.
    """
    left_out = sites_to_sum_out(model, posterior, "the posterior has")
    first = {name: values[0, 0] for name, values in posterior.items()}
    evaluated = model.evaluate(first, left_out)
    functions = []
    for name, value in evaluated.functions.items():
        if value.shape == model.sites[name].value.shape:
            functions.append(name)
        else:
            warnings.warn(
                f"site '{name}' is a function of what is summed out, one of {list(left_out)}, and "
                "is left out of the posterior",
                stacklevel=4,
            )
    found = pointwise(model, evaluated.terms)
    for name, why in found.unplaced.items():
        warnings.warn(
            f"'{name}' is part of lp, but not of log_likelihood and what is computed from it "
            f"(elpd): {why}",
            stacklevel=4,
        )
    return Export(model, left_out, tuple(functions), found)


def evaluate(export: Export, drawn: Datasets, map_draws: DrawMapper) -> Datasets:
    """What the model says about draws of its posterior.

    :param drawn: ``posterior`` and ``sample_stats``, shape ``(chains, draws, ...)``.
    :returns: the same, without auxiliary sites, but with functions of the latent sites, and with
        the log joint density ``lp`` among the statistics; and ``posterior_predictive`` and
        ``log_likelihood``, of each observation; in nats.
    """
    model = export.model

    def evaluate_draw(values: Values) -> Datasets:
        given = model.evaluate(values, export.summed_out)
        predicted = model.without_observations.draw(values).values
        return {
            "posterior": {name: given.functions[name] for name in export.functions},
            "posterior_predictive": {name: predicted[name] for name in export.observed},
            "log_likelihood": pointwise(model, given.terms).log_probs(),
            "sample_stats": {"lp": model.log_joint(given.terms)},
        }

    posterior = drawn["posterior"]
    num_chains = len(next(iter(posterior.values())))
    flat = {name: values.flatten(0, 1) for name, values in posterior.items()}
    datasets = _chains(
        map_draws(evaluate_draw, flat, description="posterior predictive"), num_chains
    )
    latent = {name: posterior[name] for name in export.latent}
    return {
        **datasets,
        "posterior": {**latent, **datasets["posterior"]},
        "sample_stats": {**drawn["sample_stats"], **datasets["sample_stats"]},
    }


def prior(export: Export, num_samples: int, map_draws: DrawMapper) -> Datasets:
    """Independent draws from the model itself.

    :returns: ``prior`` and ``prior_predictive``, shape ``(1, num_samples, ...)``.
    """

    def draw(_: Values) -> Datasets:
        drawn = export.model.without_observations.draw().values
        return {
            "prior": {name: drawn[name] for name in (*export.latent, *export.functions)},
            "prior_predictive": {name: drawn[name] for name in export.observed},
        }

    index = {"index": torch.arange(num_samples, device="cpu")}
    return _chains(map_draws(draw, index, description="prior draws"), 1)


def _chains(datasets: Datasets, num_chains: int) -> Datasets:
    return {
        dataset: {name: v.unflatten(0, (num_chains, -1)) for name, v in values.items()}
        for dataset, values in datasets.items()
    }
