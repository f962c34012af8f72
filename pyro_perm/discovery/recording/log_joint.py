"""Recording a log joint: the log-probability of every site as a function of the latents."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributions import constraints

from pyro_perm.discovery.recording.graph import Call, Graph, Node
from pyro_perm.discovery.recording.recorder import ReadWatch, Recorder
from pyro_perm.program.program import Program


@dataclass(frozen=True)
class RecordedLatent:
    """A latent site of the recorded program.

    Attributes:
        node: its value.
        support: the values that it may take.
        excluded: why the site cannot be permuted at all.
        source: the model's source line of the sample statement.
    """

    node: Node
    support: constraints.Constraint
    excluded: str | None
    source: str | None


@dataclass(frozen=True)
class LogJoint:
    """The recorded log joint.

    Attributes:
        graph: the operations.
        latents: latent sites, enumerated ones excepted.
        factors: the log-probability of every site, before it is summed.
        own_calls: the operations that computed each of them from the site's distribution.
        max_plate_nesting: number of the model's plate dimensions; dimensions further to the left
            belong to enumerated variables.
    """

    graph: Graph
    latents: dict[str, RecordedLatent]
    factors: dict[str, Node]
    own_calls: dict[str, list[Call]]
    max_plate_nesting: int


def record_log_joint(program: Program) -> LogJoint:
    """Run a program once and record how its log joint depends on its latent sites."""
    recorder = Recorder()
    recorder.graph.hidden_data = program.hidden_data
    values = {name: latent.value.clone() for name, latent in program.latents.items()}
    nodes = {name: recorder.add_latent(value, name) for name, value in values.items()}
    for tensor, what in program.fixed_tensors():
        recorder.add_fixed(tensor, what)
    factors: dict[str, Node] = {}
    own_calls: dict[str, list[Call]] = {}
    with recorder:
        with ReadWatch(recorder):
            run = program.run(values, recorder.add_fixed)
        for name, factor in run.factors.items():
            start = len(recorder.graph.calls)
            recorder.context = f"log_prob of site '{name}'"
            factors[name] = recorder.node(factor.log_prob())
            own_calls[name] = recorder.graph.calls[start:]
    latents = {
        name: RecordedLatent(
            nodes[name], latent.support, program.exclusions.get(name), latent.source
        )
        for name, latent in program.latents.items()
    }
    return LogJoint(recorder.graph, latents, factors, own_calls, run.max_plate_nesting)
