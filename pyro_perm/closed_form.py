r"""Closed-form ``KL(q || p)`` between Normals, inside the traces of a stock loss.

Where guide and prior are Normal, the traces carry, in place of the sampled ``log q(w)`` and
``log p(w)`` of a site, their expectations under ``q``: minus the entropy and minus the
cross-entropy. The loss then sums a KL divergence without Monte Carlo noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_perm.density.base_guides.independent_normals import unconstrained_node
from pyro_perm.density.gaussians import as_normal, drop_expanded
from pyro_perm.density.moved_delta import MovedDelta
from pyro_perm.density.rescaled_priors import Priors
from pyro_perm.rescaled_draws import unrescaled
from pyro_perm.site_weight import SiteWeight, common_weight
from pyro_perm.trace_sites import log_ratio_nodes


class ClosedFormTrace_ELBO(Trace_ELBO):
    """``Trace_ELBO`` whose KL term is in closed form where guide and prior are Normal."""

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        traces: tuple[Any, Any] = super()._get_trace(
            model, ClosedFormTraces(model, guide), args, kwargs
        )
        return traces


class ClosedFormTraces(Messenger):
    """Traces of a guide and a model, log-probabilities filled in where they have a closed form.

    Pyro asks a guide that is a messenger for the traces, and computes what is missing in them.

    What symmetrization adds, ``log q(w) - log q^G(w)``, becomes a term of the model: only those
    count in the score-function gradient of sites without a reparametrized sample.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.guide = model, guide

    def __call__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Run the guide, and the model on what it drew."""
        guide_trace = trace_draw(self.guide, args, kwargs)
        self.traces = trace_on_draw(self.model, guide_trace, args, kwargs), guide_trace

    def get_traces(self) -> tuple[Any, Any]:
        """The traces of the model and of the guide."""
        return self.traces


def _require_priors_of_model(priors: Priors | None, model_trace: Any, log_ratio: Any) -> None:
    """Refuse priors of rescaled sites that are not the guide's, or count otherwise.

    What rescaling changes of the one cancels in the other.

    :raises ValueError: naming the site.
    """
    weight = SiteWeight(log_ratio["scale"], log_ratio["mask"])
    for site, prior in (priors.sites if priors else {}).items():
        node = model_trace.nodes[site]
        if _differ(as_normal(prior), as_normal(node["fn"])):
            raise ValueError(
                f"the prior of site '{site}' is not the one that the guide's density has: priors "
                "of rescaled sites may not depend on sites that the guide leaves out, nor on "
                "integer tensors among the arguments; give numbers, or make a guide for each"
            )
        common_weight({"log_ratio": weight, site: SiteWeight(node["scale"], node["mask"])})


def trace_draw(guide: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run a guide, whose units keep their scales: the closed form is that of its base guide."""
    with unrescaled():
        return poutine.trace(guide).get_trace(*args, **kwargs)


def trace_on_draw(
    model: Callable[..., Any],
    guide_trace: Any,
    args: Any,
    kwargs: Any,
    rescaled: Collection[str] = (),
) -> Any:
    """Run the model on what a guide drew, and fill in both traces.

    :param guide_trace: is changed: what symmetrization adds moves to the model's trace.
    :param rescaled: sites that are rescaled by a symmetry which the guide does not bring.
    :returns: the trace of the model.
    """
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    log_ratios = log_ratio_nodes(guide_trace.nodes)
    rescaled = {*rescaled, *(s for node in log_ratios.values() for s in _rescaled_sites(node))}
    _use_closed_form_kl(model_trace, guide_trace, rescaled)
    for name, node in log_ratios.items():
        _require_priors_of_model(node["fn"].density.priors, model_trace, node)
        guide_trace.remove_node(name)
        model_trace.add_node(name, **{**node, "is_observed": True})
        _set_log_prob(model_trace.nodes[name], -node["fn"].log_prob(node["value"]))
    return model_trace


def _rescaled_sites(log_ratio: Any) -> Collection[str]:
    priors: Priors | None = log_ratio["fn"].density.priors
    return () if priors is None else priors.sites


def _use_closed_form_kl(model_trace: Any, guide_trace: Any, rescaled: Collection[str]) -> None:
    """Fill in the expectations of log-probabilities wherever guide and prior are Normal.

    Sites are left to Monte Carlo where one of the two is not Normal, and all of them if the guide
    draws sites in another order than the model: its sites may then depend on each other. So are
    sites that are rescaled: what is sampled there depends on orbits alone, since ``log q(w)`` and
    ``log p(w)`` cancel with the log-ratio, whereas the expectations change as factors drift along
    their orbits, and differ from them by ever more noise.
    """
    latent = _latent_sites(model_trace, guide_trace)
    if latent != _latent_sites(guide_trace, model_trace):
        return
    no_score: Any = 0.0
    for name in latent:
        if name in rescaled:
            continue
        prior: Any = model_trace.nodes[name]
        guide: Any = guide_trace.nodes.get(unconstrained_node(name), guide_trace.nodes[name])
        p, q = as_normal(prior["fn"]), as_normal(guide["fn"])
        if p is None or q is None or not guide["fn"].has_rsample:
            continue
        if len(p.batch_shape) > prior["value"].dim():
            continue  # The prior depends on a variable that the model enumerates.
        loc, scale = q.loc, q.scale
        met = guide_trace.nodes[name]["fn"]
        if isinstance(met, MovedDelta) and (prior["mask"] is not None or not _is_constant(p)):
            # As the model met them: a flip changes the sign of the scale too.
            loc, scale = met.move(loc), met.move(scale)
        cross_entropy = _cross_entropy(loc, scale, p)
        _set_log_prob(prior, sum_rightmost(-cross_entropy, prior["fn"].event_dim))
        log_prob = sum_rightmost(-q.entropy(), guide["fn"].event_dim)
        _set_log_prob(guide, log_prob)
        parts = ScoreParts(log_prob, no_score, log_prob)
        guide["score_parts"] = parts.scale_and_mask(guide["scale"], guide["mask"])


def _latent_sites(trace: Any, other: Any) -> list[str]:
    """The latent sites of a trace that another one has too, in order."""
    return [
        name
        for name, node in trace.iter_stochastic_nodes()
        if name in other.nodes and not site_is_subsample(node)
    ]


def _differ(
    one: torch.distributions.Normal | None, other: torch.distributions.Normal | None
) -> bool:
    """Whether two Normals are seen to have other parameters."""
    if one is None or other is None:
        return False
    pairs = ((one.loc, other.loc), (one.scale, other.scale))
    each = [tuple(drop_expanded(tensor, 0) for tensor in pair) for pair in pairs]
    return any(a.shape == b.shape and not torch.equal(a, b) for a, b in each)


def _is_constant(p: torch.distributions.Normal) -> bool:
    """Whether all entries have one prior, so that their order does not matter."""
    return not any(any(parameter.stride()) for parameter in (p.loc, p.scale))


def _cross_entropy(loc: Tensor, scale: Tensor, p: torch.distributions.Normal) -> Tensor:
    """``-E[log p(x)]`` for ``x ~ N(loc, scale)``, entry by entry."""
    prior_loc, prior_scale = p.loc, p.scale
    if loc.shape == prior_loc.shape:  # One number for all entries of a prior is one logarithm.
        prior_loc, prior_scale = drop_expanded(prior_loc, 0), drop_expanded(prior_scale, 0)
    squares = (scale.square() + (loc - prior_loc).square()) / prior_scale.square()
    cross_entropy: Tensor = 0.5 * squares + prior_scale.log() + 0.5 * math.log(2 * math.pi)
    return cross_entropy


def _set_log_prob(site: Any, log_prob: Tensor) -> None:
    site["unscaled_log_prob"] = log_prob
    site["log_prob"] = scale_and_mask(log_prob, site["scale"], site["mask"])
    site["log_prob_sum"] = site["log_prob"].sum()
