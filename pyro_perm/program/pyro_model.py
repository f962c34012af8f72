"""A Pyro model as a program: its sample sites are latent sites and factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import pyro
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_perm.program.inputs import Inputs
from pyro_perm.program.modules import tensors_of_modules
from pyro_perm.program.program import SUMMED_OUT, Announce, Factor, Latent, Run, disregard
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.program.site_lines import SiteLines
from pyro_perm.program.trace import (
    Model,
    is_enumerated,
    latent_sites,
    observe_outputs,
    plate_nesting,
    prior_trace,
    with_enumeration,
)
from pyro_perm.symmetry.binding import SiteShape, site_shapes
from pyro_perm.symmetry.spec import Spec


@dataclass(frozen=True)
class PyroModel:
    """A Pyro model and its arguments.

    If it observes nothing, its outputs are observed. Sites that nothing gives a value keep the one
    of a first run.

    :param model: the model.
    :param inputs: its arguments.
    :param trace: a trace of it.
    :param lines: site -> source line.
    :param visible: the model as its guide sees it, if that is another one.
    """

    model: Model
    inputs: Inputs
    trace: Any
    lines: Mapping[str, str | None]
    visible: Model | None

    @classmethod
    def first_run(cls, model: Model, inputs: Inputs, visible: Model) -> PyroModel:
        """Run a model to see its sites.

        :param visible: the model with the handlers by which its guide hides sites.
        """
        with SiteLines() as lines:
            trace = prior_trace(inputs.call(model))
        filtered = None if visible is model else visible
        return cls(observe_outputs(model, trace), inputs, trace, lines.of_site, filtered)

    @property
    def samples_nothing(self) -> bool:
        """Whether the model has no sample statement at all."""
        return not any(node["type"] == "sample" for node in self.trace.nodes.values())

    @cached_property
    def latents(self) -> dict[str, Latent]:
        """The latent sites, those excepted that are summed out."""
        return {
            name: Latent(
                site["value"].detach(), site["fn"].support, self.lines.get(name), site["fn"]
            )
            for name, site in latent_sites(self.trace)
            if not is_enumerated(site)
        }

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of latent sites: none."""
        return {}

    @cached_property
    def exclusions(self) -> dict[str, str]:
        """Latent sites that cannot be permuted at all, with the reasons."""
        reasons = dict.fromkeys(
            self._hidden_sites, "the site is hidden from the guide by poutine.block"
        )
        for name, site in latent_sites(self.trace):
            for frame in site["cond_indep_stack"]:
                if frame.vectorized and frame.full_size not in (None, frame.size):
                    reasons[name] = f"the site lies in the subsampled plate '{frame.name}'"
            if site["fn"].support.is_discrete and not is_enumerated(site):
                reasons[name] = (
                    "the site is discrete; mark it with infer={'enumerate': 'parallel'} "
                    "to sum it out"
                )
        return reasons

    @cached_property
    def _hidden_sites(self) -> list[str]:
        """Latent sites that the guide does not draw."""
        if self.visible is None:
            return []
        trace = prior_trace(self.inputs.call(self.visible))
        visible = dict(latent_sites(trace)).keys()
        return [name for name in self.latents if name not in visible]

    @property
    def hidden_data(self) -> str | None:
        """An argument that holds data in another form than a tensor."""
        return self.inputs.hidden_data

    def fixed_tensors(self) -> Iterator[tuple[Tensor, str]]:
        """Arguments, and parameters and buffers: those of modules, and those of Pyro's store."""
        yield from self.inputs.tensors()
        yield from tensors_of_modules((self.model, self.inputs.args, self.inputs.kwargs))
        for name, unconstrained in pyro.get_param_store().named_parameters():
            yield unconstrained, f"parameter '{name}'"

    def map_inputs(self, convert: Callable[[Any], Any]) -> PyroModel:
        """The same model with other arguments."""
        return replace(self, inputs=self.inputs.map(convert))

    def site_shapes(self, spec: Spec) -> dict[str, SiteShape]:
        """The shapes of a spec's sites.

        :raises ValueError: if a site is not latent, lies in a subsampled plate, or is drawn by
            another guide than that of the others.
        """
        for group, sites in spec.items():
            for site in self._hidden_sites:
                if site in sites:
                    raise ValueError(
                        f"group '{group}', site '{site}': poutine.block hides the site from the "
                        "guide that is to permute it; let one guide draw all sites of a group, or "
                        "symmetrize the list of guides as a whole"
                    )
        return site_shapes(spec, self.trace)

    def run(self, values: Mapping[str, Tensor], announce: Announce = disregard) -> Run:
        """Run with some latent values and the randomness of the first run.

        :param values: site -> value.
        :param announce: is told of observed values, parameters and subsamples.
        """
        with _SiteWatch(announce):
            trace = self._trace_at(values)
        factors = {
            name: Factor(name in self.latents, site["value"], partial(_log_density, site))
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site_is_subsample(site)
        }
        if self._is_enumerated:
            return _EnumeratedRun(factors, self._nesting, sum_out=partial(self._sum_out, trace))
        return Run(factors, self._nesting)

    def _trace_at(self, values: Mapping[str, Tensor]) -> Any:
        replayed = self.trace.copy()
        for name, site in latent_sites(self.trace):
            if is_enumerated(site):
                replayed.remove_node(name)
            else:
                value = values.get(name, site["value"].detach())
                replayed.nodes[name] = {**site, "value": value}
        replay = poutine.replay(self._enumerated_model, trace=replayed)
        with fixed_seed():
            return poutine.trace(replay).get_trace(*self.inputs.args, **self.inputs.kwargs)

    def _sum_out(self, trace: Any) -> Tensor:
        log_prob: Tensor = self._evaluator.log_prob(trace)
        return log_prob

    @cached_property
    def _evaluator(self) -> TraceEinsumEvaluator:
        return TraceEinsumEvaluator(self._trace_at({}), True, self._nesting)

    @cached_property
    def _is_enumerated(self) -> bool:
        return any(is_enumerated(site) for _, site in latent_sites(self.trace))

    @cached_property
    def _nesting(self) -> int:
        return plate_nesting(self.trace)

    @cached_property
    def _enumerated_model(self) -> Model:
        return with_enumeration(self.model, self._nesting) if self._is_enumerated else self.model


@dataclass(frozen=True)
class _EnumeratedRun(Run):
    """A run with variables to sum out.

    Attributes:
        sum_out: computes the log joint without them, in nats.
    """

    sum_out: Callable[[], Tensor] = field(kw_only=True)

    def log_probs(self) -> dict[str, Tensor]:
        """The priors in which no enumerated variable occurs, and all else in one scalar."""
        rest = self.sum_out()
        apart = {
            name: log_prob
            for name, factor in self.factors.items()
            if factor.is_prior and (log_prob := factor.log_prob()).dim() <= self.max_plate_nesting
        }
        for log_prob in apart.values():
            rest = rest - log_prob.sum()
        return {**apart, SUMMED_OUT: rest}


class _SiteWatch(Messenger):
    """Announces observed values, parameters and subsamples, none of which is latent."""

    def __init__(self, announce: Announce) -> None:
        super().__init__()
        self._announce = announce

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor):
            if msg["is_observed"] and msg["value"].numel():
                self._announce(msg["value"], f"the observed value of site '{msg['name']}'")
            elif site_is_subsample(msg):
                self._announce(msg["value"], f"the subsample of plate '{msg['name']}'")

    def _pyro_post_param(self, msg: Any) -> None:
        self._announce(msg["value"], f"parameter '{msg['name']}'")


def _log_density(site: Any, value: Tensor) -> Tensor:
    log_prob = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    scaled: Tensor = scale_and_mask(log_prob, site["scale"], site["mask"])
    return scaled
