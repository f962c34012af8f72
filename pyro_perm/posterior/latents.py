"""Which of a model's latent sites a posterior draws, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide

from pyro_perm.guide import AutoSymmetrized
from pyro_perm.program._pyro_internals import has_run
from pyro_perm.program.full_data import FullData
from pyro_perm.program.log_prob_shapes import LogProbShapes, LogProbShapesInPlates
from pyro_perm.program.sites import SiteKind


def log_prob_shapes(posterior: Any) -> LogProbShapes:
    """What the shapes of a model's log-densities are held to, as where its posterior came from.

    :param posterior: a guide, or an MCMC or its samples.
    """
    of_mcmc = isinstance(posterior, MCMC | Mapping)
    return LogProbShapesInPlates() if of_mcmc else LogProbShapes()


def sites_to_sum_out(model: FullData, drawn: Collection[str], source: str) -> tuple[str, ...]:
    """The model's latent sites that a posterior leaves out, all of which can be summed out.

    :param drawn: names of the sites that the posterior draws.
    :param source: for the error, such as "the guide draws".
    :raises ValueError: if one of them cannot be summed out, or the model has no latent site.
    """
    if not model.names(SiteKind.LATENT):
        raise ValueError("the model has no latent site, and so no posterior")
    latent = model.names(SiteKind.LATENT, SiteKind.AUXILIARY)
    left_out = [name for name in latent if name not in drawn]
    lost = [name for name in left_out if not model.sites[name].can_be_summed_out]
    if lost:
        raise ValueError(
            f"{source} no {', '.join(map(repr, lost))}, so these latent sites of the model have no "
            "value: add them; or, if they are discrete, mark them with "
            "infer={'enumerate': 'parallel'} to sum them out"
        )
    return tuple(left_out)


def require_no_others(model: FullData, guide: FullData) -> None:
    """Refuse a guide that draws what is no latent site of the model.

    :raises ValueError: if there is such a site.
    """
    known = model.names(SiteKind.LATENT, SiteKind.AUXILIARY)
    for name in guide.names(SiteKind.LATENT):
        if name not in known:
            kind = model.sites[name].kind.value if name in model.sites else "absent"
            raise ValueError(
                f"the guide draws site '{name}', which in the model is {kind}, not latent: "
                "evaluate the model that the guide was trained for; if it is a variable of the "
                "guide's own, mark it with infer={'is_auxiliary': True}"
            )


def require_made_of_observations(guide: Any, model: FullData) -> None:
    """Refuse a guide that has not run, where the data would be among the sites that it draws.

    :param guide: the guide; it is left as it is.
    :param model: the model with the arguments that the guide would be called with.
    :raises ValueError: if the guide has not run, and the model observes nothing.
    """
    base = guide.base if isinstance(guide, AutoSymmetrized) else guide
    if not isinstance(base, AutoGuide) or base.prototype_trace is not None:
        return
    if not model.names(SiteKind.OBSERVATION, SiteKind.FACTOR):
        raise ValueError(
            "the guide has no parameters yet, and would take the data for latent sites, since the "
            "model is called without observations: call guide(x, y) with observations, or train "
            "it, first"
        )


def require_draws(mcmc: MCMC) -> None:
    """Refuse an MCMC that has not run.

    :raises ValueError: if it has no draws.
    """
    if not has_run(mcmc):
        raise ValueError("the MCMC has no draws yet: call mcmc.run(...) first")


def together(model: FullData, guide: FullData) -> FullData:
    """The guide, subsampling as the model does.

    :raises ValueError: if the guide looks up what belongs to the rows of a plate, but the model was
        passed a batch, which need not be these rows.
    """
    for plate in sorted(guide.looked_up & model.passed):
        raise ValueError(
            f"the guide looks up its parameters by the indices of plate '{plate}', but the model "
            "never looks at these indices, so its batch need not be of the same rows: index the "
            f"model's data by them, or pass the rows of the batch, pyro.plate('{plate}', size, "
            "subsample=indices), in model and guide"
        )
    return replace(
        guide,
        looked_up=guide.looked_up | model.looked_up,
        passed=guide.passed - model.looked_up,
    )
