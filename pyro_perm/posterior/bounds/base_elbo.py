"""The ELBO of a base guide over all data, draw by draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from tqdm.auto import tqdm

from pyro_perm.closed_form import trace_draw, trace_on_draw
from pyro_perm.density.base_guides import base_node, read_density
from pyro_perm.log_ratio import without_log_ratios
from pyro_perm.posterior.bounds.draws import Draw
from pyro_perm.posterior.bounds.portfolio import NUM_PILOTS
from pyro_perm.posterior.bounds.split_data import PerDraw, Split, split_of
from pyro_perm.posterior.latents import require_no_others, sites_to_sum_out, together
from pyro_perm.prior_reader import PriorReader
from pyro_perm.program.batches import Data
from pyro_perm.program.full_data import FullData, Joint, glance
from pyro_perm.program.inputs import Inputs
from pyro_perm.program.log_prob_shapes import LogProbShapes
from pyro_perm.program.sites import SiteKind
from pyro_perm.program.subsampling import Sweep
from pyro_perm.program.summed_out import enumerate_sites, traced_terms
from pyro_perm.sampling import looking_on
from pyro_perm.site_weight import SiteWeight, common_weight
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.trace_sites import log_ratio_nodes

Program = Callable[..., Any]


@dataclass
class BaseELBO:
    """Draws of a base guide, with integrands of ``ELBO(q)`` over all data.

    Their KL terms are in closed form where they have one. Latent sites of the model that the guide
    leaves out are summed out. Plates that the model subsamples itself run through all of their
    rows at each draw, and so does a loader.

    Attributes:
        model: the model as the guide sees it, at its first call.
        guide: the guide, likewise.
        data: what both are called with.
        split: the plates whose rows a loader gives batch by batch.
        group: the group that the guide is, or could be, symmetrized over.
        priors: reads those of the sites that are rescaled.
        weight: what handlers multiply the log-density of the guide's symmetric sites with, and so
            ``I(g; w)``; known after the first draw.
    """

    model: FullData
    guide: FullData
    data: Data
    split: Split
    group: SymmetryGroup
    priors: PriorReader
    weight: float = field(default=1.0, init=False)
    _num_draws: int = field(default=0, init=False)

    @classmethod
    def of(cls, model: Program, guide: Program, data: Data, group: SymmetryGroup) -> BaseELBO:
        """See which sites the guide leaves out, and which plates the data are split along.

        :raises ValueError: if one of the sites cannot be summed out, or the guide draws others; if
            a plate has more rows than the data are, or a loader does not tell its plate.
        """
        with looking_on(), LogProbShapes():
            seen = glance(data.call(model))
        with looking_on():
            drawn = glance(data.call(guide))
        drawn = together(seen, drawn)
        left_out = sites_to_sum_out(seen, drawn.names(SiteKind.LATENT), "the guide draws")
        require_no_others(seen, drawn)
        priors = PriorReader(model, group)
        program = enumerate_sites(model, left_out, seen.max_plate_nesting)
        seen = replace(seen, call=replace(seen.call, program=program))
        return cls(seen, drawn, data, split_of(seen, drawn, data), group, priors)

    def draws(
        self, num: int, *, known: Sequence[float] = (), progress: bool = False
    ) -> Iterator[Draw]:
        """Draws without end; a loader is read once for the first ones, and again for others.

        :param num: how many are surely asked for.
        :param known: the integrands of so many, from :meth:`elbos` in other processes, or none.
        :param progress: whether to show a progress bar of the batches.
        :raises ValueError: if handlers weigh the guide's symmetric sites differently, or the
            loader does not give every row once.
        """
        if known:
            inputs = next(iter(self.data))
            for elbo in known:
                yield Draw(_DrawInProgress(self, inputs).density, elbo, self.weight)
        firsts = [] if known or not self.data.is_split else [num]
        several = NUM_PILOTS if self.data.is_split else 1
        for each in itertools.chain(firsts, itertools.repeat(several)):
            for draw in self._read(each, progress=progress and self.data.is_split):
                yield Draw(draw.density, draw.elbo, self.weight)

    def elbos(self, num: int, numbers: Sequence[int]) -> list[float] | None:
        """The integrands of some of so many draws, for which alone the model is run.

        :returns: None if the model draws random numbers, so that those of later draws depend on it.
        """
        try:
            drawn = self._read(num, numbers=numbers)
        except _ModelDraws:
            return None
        return [drawn[number].elbo for number in numbers]

    def _read(
        self, num: int, *, numbers: Sequence[int] | None = None, progress: bool = False
    ) -> list[_DrawInProgress]:
        """As many draws, after one look at all data.

        :param numbers: of those whose integrands are asked for; None for all.
        """
        drawn: list[_DrawInProgress] = []
        rows = self.split.count()
        batches = tqdm(self.data, desc="batches", leave=False, disable=not progress)
        for inputs in batches:
            for number in range(num):
                if number == len(drawn):
                    drawn.append(_DrawInProgress(self, inputs))
                if numbers is None:
                    trace = drawn[number].see(inputs)
                elif number in numbers:
                    with _watched_for_draws():
                        trace = drawn[number].see(inputs)
            rows.add(trace)
        rows.require_all()
        return drawn

    def set_weight(self, nodes: Any) -> None:
        """Note how handlers weigh the guide's symmetric sites, which must be alike in all draws."""
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


class _DrawInProgress:
    """One draw of the guide, and its integrand over the data that it has seen.

    :param source: what draws.
    :param inputs: the first arguments.

    Attributes:
        density: of the base guide, with the draw.
    """

    def __init__(self, source: BaseELBO, inputs: Inputs) -> None:
        self._source = source
        self._guide_trace = prune_subsample_sites(self._run_guide(inputs))
        nodes = self._guide_trace.nodes
        source.set_weight(nodes)
        priors = source.priors(nodes, inputs.args, inputs.kwargs)
        self.density = read_density(nodes, source.group, priors)
        in_part = source.model.looked_up | source.guide.looked_up | source.split.plates
        sites = dict(self._guide_trace.iter_stochastic_nodes())
        local = [name for name, node in sites.items() if in_part & _plates(node)]
        self._has_local_sites = bool(local)
        self._values: dict[str, Any] = {
            name: node["value"] for name, node in sites.items() if name not in local
        }
        self._model_sum = PerDraw(source.split)
        self._guide_sum = PerDraw(source.split)

    @property
    def elbo(self) -> float:
        """``log p(D, w) - log q(w)``, without what symmetrization adds."""
        return float(self._model_sum.total - self._guide_sum.total)

    def see(self, inputs: Inputs) -> Any:
        """Run the model on a batch, through all of the plates that it subsamples itself.

        :returns: a trace of the model.
        :raises ValueError: if what lies outside of the split plates changes with the batch.
        """
        source = self._source
        model_joint, guide_joint = Joint(source.split.plates), Joint(source.split.plates)
        sweep = Sweep(dict(self._values), source.model.passed)
        for _ in sweep.turns():
            guide_trace = self._guide_trace
            with sweep:
                if self._has_local_sites:
                    guide_trace = self._run_guide(inputs)
                model_trace = trace_on_draw(
                    source.model.call.program,
                    guide_trace,
                    inputs.args,
                    inputs.kwargs,
                    source.priors.sites,
                )
            pruned = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
            if is_validation_enabled():
                check_model_guide_match(*pruned, source.model.max_plate_nesting)
            gains = log_ratio_nodes(pruned[0].nodes)
            terms = traced_terms(pruned[0])
            model_joint.add(
                (t for t in terms if gains.keys().isdisjoint(t.sites)), sweep.subsamples
            )
            guide_joint.add(traced_terms(pruned[1]), sweep.subsamples)
        self._model_sum.add(model_joint.terms)
        self._guide_sum.add(guide_joint.terms)
        return model_trace

    def _run_guide(self, inputs: Inputs) -> Any:
        with without_log_ratios():
            return trace_draw(self._source.guide.call.program, inputs.args, inputs.kwargs)


class _ModelDraws(Exception):
    """The model has drawn random numbers, where it was to run at given values."""


@contextmanager
def _watched_for_draws() -> Iterator[None]:
    before = _random_state()
    yield
    if _random_state() != before:
        raise _ModelDraws


def _random_state() -> tuple[Any, ...]:
    """That of all generators, to be compared."""
    state = pyro.util.get_rng_state()
    _, keys, *position = state["numpy"]
    return state["torch"].numpy().tobytes(), state["random"], keys.tobytes(), position


def _plates(node: Any) -> set[str]:
    return {frame.name for frame in node["cond_indep_stack"]}
