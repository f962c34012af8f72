"""Recording a model's log joint: the log-probability of every site as a function of the latents."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_perm.symmetry.discovery.graph import Call, Graph, Node
from pyro_perm.symmetry.discovery.modules import modules_among
from pyro_perm.symmetry.discovery.recorder import ReadWatch, Recorder
from pyro_perm.symmetry.discovery.sources import source_line

Model = Callable[..., Any]


@dataclass(frozen=True)
class Latent:
    """A latent site of the recorded model.

    Attributes:
        node: its value.
        event_dim: how many of its dimensions are the event's.
        fn: its distribution.
        excluded: why the site cannot be permuted at all.
        source: the model's source line of the sample statement.
    """

    node: Node
    event_dim: int
    fn: Any
    excluded: str | None
    source: str | None


@dataclass(frozen=True)
class LogJoint:
    """The recorded log joint.

    Attributes:
        graph: the operations.
        latents: latent sites, enumerated ones excepted.
        factors: the log-probability of every site, before it is summed.
        prior_calls: the operations that computed each of them from the site's distribution.
        max_plate_nesting: number of the model's plate dimensions; dimensions further to the left
            belong to enumerated variables.
        trace: a trace of the model, without enumeration.
    """

    graph: Graph
    latents: dict[str, Latent]
    factors: dict[str, Node]
    prior_calls: dict[str, list[Call]]
    max_plate_nesting: int
    trace: Any


class _Announce(Messenger):
    """Tells the recorder which tensors are parameters and observations, and notes source lines."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.lines: dict[str, str | None] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.lines[msg["name"]] = source_line()

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor):
            if msg["is_observed"] and msg["value"].numel():
                self.recorder.add_fixed(msg["value"], f"the observed value of site '{msg['name']}'")
            elif site_is_subsample(msg):
                self.recorder.add_fixed(msg["value"], f"the subsample of plate '{msg['name']}'")

    def _pyro_post_param(self, msg: Any) -> None:
        self.recorder.add_fixed(msg["value"], f"parameter '{msg['name']}'")


def prior_trace(model: Model, args: Any, kwargs: Any) -> Any:
    """A trace of the model with every latent site drawn from its prior."""
    return poutine.trace(model).get_trace(*args, **kwargs)


def latent_sites(trace: Any) -> Iterator[tuple[str, Any]]:
    """The latent sites of a trace, without plates."""
    for name, site in trace.iter_stochastic_nodes():
        if not site_is_subsample(site):
            yield name, site


def comparable(model: Model, trace: Any) -> Model:
    """The model, or if it observes nothing, the model with its predictions observed.

    A network without its likelihood, such as the ``net`` of TyXe's ``VariationalBNN``, is meant to
    return the same under the group, whatever its output will be compared with. Latent values among
    what a model returns are no predictions.

    :param trace: a trace of the model.
    """
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    if any(site["is_observed"] and not site_is_subsample(site) for site in sites):
        return model
    latent = {id(site["value"]) for site in sites}
    returned = _tensors(trace.nodes["_RETURN"]["value"])
    predictions = [k for k, value in enumerate(returned) if id(value) not in latent]
    return functools.partial(_observe_predictions, model, predictions)


def _observe_predictions(model: Model, positions: Sequence[int], *args: Any, **kwargs: Any) -> None:
    returned = _tensors(model(*args, **kwargs))
    for position in positions:
        mean = returned[position]
        anything = torch.arange(mean.numel()).cos().view(mean.shape)
        likelihood = dist.Normal(1.0 * mean, 1.0).to_event(mean.dim())
        pyro.sample(f"returned value {position}", likelihood, obs=anything)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def is_enumerated(site: Any) -> bool:
    """Whether the model asks for a site to be summed out."""
    return bool(site["infer"].get("enumerate")) and site["fn"].has_enumerate_support


def plate_nesting(trace: Any) -> int:
    """The largest number of plate dimensions of any site."""
    return max(
        (
            -frame.dim
            for _, site in trace.nodes.items()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
            if frame.vectorized and frame.dim is not None
        ),
        default=0,
    )


def enumerated(model: Model, max_plate_nesting: int) -> Model:
    """The model with enumerated sites on dimensions to the left of all plates."""
    wrapped: Model = poutine.enum(model, first_available_dim=-1 - max_plate_nesting)
    return wrapped


def record_log_joint(model: Model, trace: Any, args: Any, kwargs: Any) -> LogJoint:
    """Run a model once and record how its log joint depends on its latent sites.

    :param trace: a trace of the model, whose values the latent sites take: only shapes matter.
    """
    nesting = plate_nesting(trace)
    recorder = Recorder()
    replayed = trace.copy()
    excluded = {name: _why_excluded(site) for name, site in latent_sites(trace)}
    nodes: dict[str, Node] = {}
    for name, site in latent_sites(trace):
        if is_enumerated(site):
            replayed.remove_node(name)
            continue
        value = site["value"].detach().clone()
        replayed.nodes[name] = {**site, "value": value}
        nodes[name] = recorder.add_latent(value, name)
    recorder.graph.hidden_data = _hidden_data(args, kwargs)
    for tensor, what in _outside_tensors(model, args, kwargs):
        recorder.add_fixed(tensor, what)
    announce = _Announce(recorder)
    wide = poutine.replay(enumerated(model, nesting), trace=replayed)
    factors: dict[str, Node] = {}
    prior_calls: dict[str, list[Call]] = {}
    with recorder:
        with announce, ReadWatch(recorder):
            moved = poutine.trace(wide).get_trace(*args, **kwargs)
        for name, site in moved.nodes.items():
            if site["type"] == "sample" and not site_is_subsample(site):
                start = len(recorder.graph.calls)
                recorder.context = f"log_prob of site '{name}'"
                log_prob = _log_prob(site)
                if isinstance(log_prob, Tensor):
                    factors[name] = recorder.node(log_prob)
                prior_calls[name] = recorder.graph.calls[start:]
    latents = {
        name: Latent(
            node=node,
            event_dim=trace.nodes[name]["fn"].event_dim,
            fn=trace.nodes[name]["fn"],
            excluded=excluded[name],
            source=announce.lines.get(name),
        )
        for name, node in nodes.items()
    }
    return LogJoint(recorder.graph, latents, factors, prior_calls, nesting, trace)


def _log_prob(site: Any) -> Any:
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def _why_excluded(site: Any) -> str | None:
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.full_size not in (None, frame.size):
            return f"the site lies in the subsampled plate '{frame.name}'"
    if site["fn"].support.is_discrete:
        return "the site is discrete; mark it with infer={'enumerate': 'parallel'} to sum it out"
    return None


def _outside_tensors(model: Model, args: Any, kwargs: Any) -> Iterator[tuple[Tensor, str]]:
    """Tensors whose values belong to the call or to training, not to the model's structure."""
    for position, argument in enumerate(args):
        for leaf in tree_flatten(argument)[0]:
            if isinstance(leaf, Tensor):
                yield leaf, f"argument {position}"
    for name, argument in kwargs.items():
        for leaf in tree_flatten(argument)[0]:
            if isinstance(leaf, Tensor):
                yield leaf, f"argument '{name}'"
    for module in modules_among((model, args, kwargs)):
        for name, parameter in module.named_parameters():
            yield parameter, f"parameter '{name}'"
        for name, buffer in module.named_buffers():
            yield buffer, f"buffer '{name}'"


def _hidden_data(args: Any, kwargs: Any) -> str | None:
    """An argument that holds data which is not a tensor, and would look like a constant."""
    named = [(f"argument {position}", value) for position, value in enumerate(args)]
    for name, value in (*named, *((f"argument '{key}'", value) for key, value in kwargs.items())):
        has_numbers = not isinstance(value, int | float)
        for leaf in tree_flatten(value)[0]:
            is_array = hasattr(leaf, "__array__") and not isinstance(leaf, Tensor)
            if is_array or (has_numbers and isinstance(leaf, int | float)):
                return f"{name}; pass a tensor"
    return None
