"""The ELBO of a base guide, draw by draw."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match

from pyro_perm.closed_form import ClosedFormTraces
from pyro_perm.density.base_guides import base_node, read_density
from pyro_perm.posterior.bounds.draws import Draw
from pyro_perm.posterior.latents import require_no_others, summed_out
from pyro_perm.prior_reader import PriorReader
from pyro_perm.program.call import Call
from pyro_perm.program.full_data import FullData, glance
from pyro_perm.program.sites import SiteKind
from pyro_perm.program.summed_out import summing_out, traced_terms
from pyro_perm.sampling import looking_on
from pyro_perm.site_weight import SiteWeight, common_weight
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.trace_sites import log_ratio_nodes


@dataclass
class BaseELBO:
    """Draws of a base guide, with integrands of ``ELBO(q)``.

    Their KL terms are in closed form where they have one. Latent sites of the model that the guide
    leaves out are summed out.

    Attributes:
        model: the model as the guide sees it.
        guide: the guide.
        group: the group that it is, or could be, symmetrized over.
        priors: reads those of the sites that are rescaled.
        weight: what handlers multiply the log-density of the guide's symmetric sites with, and so
            ``I(g; w)``; known after the first draw.
    """

    model: FullData
    guide: Call
    group: SymmetryGroup
    priors: PriorReader
    weight: float = field(default=1.0, init=False)
    _num_draws: int = field(default=0, init=False)

    @classmethod
    def of(cls, model: Call, guide: Call, group: SymmetryGroup) -> BaseELBO:
        """See which sites the guide leaves out.

        :raises ValueError: if one of them cannot be summed out, or the guide draws others.
        """
        with looking_on():
            seen, drawn = glance(model), glance(guide)
        left_out = summed_out(seen, drawn.names(SiteKind.LATENT), "the guide draws")
        require_no_others(seen, drawn)
        program = summing_out(model.program, left_out, seen.max_plate_nesting)
        priors = PriorReader(model.program, group, model.args, model.kwargs)
        return cls(replace(seen, call=replace(model, program=program)), guide, group, priors)

    def __call__(self) -> Draw:
        """Draw once.

        :raises ValueError: if handlers weigh the guide's symmetric sites differently.
        """
        traces = ClosedFormTraces(self.model.call.program, self.guide.program)
        traces(*self.guide.args, **self.guide.kwargs)
        model_trace, guide_trace = map(prune_subsample_sites, traces.get_traces())
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.model.max_plate_nesting)
        self._set_weight(guide_trace.nodes)
        priors = self.priors(guide_trace.nodes, self.guide.args, self.guide.kwargs)
        density = replace(read_density(guide_trace.nodes, self.group), priors=priors)
        return Draw(density, _elbo(model_trace, guide_trace), self.weight)

    def _set_weight(self, nodes: Any) -> None:
        names = [base_node(site, nodes) for site in self.group.sites]
        common = common_weight({n: SiteWeight(nodes[n]["scale"], nodes[n]["mask"]) for n in names})
        common.require_batched_as(torch.Size(), names[0])
        counts = common.mask is None or bool(common.mask)
        weight = float(common.scale) if counts else 0.0
        if self._num_draws and weight != self.weight:
            raise ValueError(
                f"handlers weigh the guide's site '{names[0]}' by {self.weight} in one draw, and "
                f"by {weight} in another, so that I(g; w) has no weight of its own"
            )
        self.weight = weight
        self._num_draws += 1


def _elbo(model_trace: Any, guide_trace: Any) -> float:
    """``log p(D, w) - log q(w)``, without what symmetrization adds."""
    gains = log_ratio_nodes(model_trace.nodes)
    terms = (term for term in traced_terms(model_trace) if gains.keys().isdisjoint(term.sites))
    log_joint = sum(term.total for term in terms)
    return float(log_joint - guide_trace.log_prob_sum())
