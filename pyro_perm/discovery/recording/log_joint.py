"""Recording a model's log joint: the log-probability of every site as a function of the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_perm.discovery.recording.graph import Call, Graph, Node
from pyro_perm.discovery.recording.recorder import ReadWatch, Recorder
from pyro_perm.program.modules import modules_among
from pyro_perm.program.source_lines import source_line
from pyro_perm.program.trace import enumerated, is_enumerated, latent_sites, plate_nesting

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
