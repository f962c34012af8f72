"""Following degrees from latent sites through the operations of a log joint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.degrees import INVARIANT, DegreeTable
from pyro_perm.discovery.gradings.linear_equations import Equations, LinearForm
from pyro_perm.discovery.gradings.rules import Grading, GradingRules
from pyro_perm.discovery.recording.graph import Call, Graph, Node
from pyro_perm.discovery.recording.log_joint import LogJoint
from pyro_perm.program._torch_internals import tree_leaves, tree_map
from pyro_perm.symmetry.axis import Axis

Sites = Mapping[str, tuple[Axis, ...]]
Unknown = tuple[str, Axis]


@dataclass(frozen=True)
class Demands:
    """What must hold for the degrees of a unit's entries.

    Attributes:
        equations: for the unknowns.
        forms: the degrees of tensors that are computed from data, in the order in which these are.
    """

    equations: Equations
    forms: list[LinearForm]


@dataclass(frozen=True)
class GradedJoint:
    """A log joint whose tensors have degrees.

    Attributes:
        joint: the log joint.
        grading: the action.
    """

    joint: LogJoint
    grading: Grading

    def demands(self, unknowns: Sequence[Unknown], factors: Iterable[str]) -> Demands:
        """What must hold if some factors are not to change when a unit is acted on.

        :param unknowns: the axes whose degrees are unknown, each with its site; all other latent
            entries are left alone.
        :param factors: names of the sites whose log-probabilities must not change.
        """
        equations = Equations(self.grading.field, len(unknowns))
        dataflow = _Dataflow(self.joint.graph, self.grading, equations, dict(self._zeros))
        for k, (site, axis) in enumerate(unknowns):
            dataflow.act_on_first_unit(self.joint.latents[site].node, axis, k)
        outputs = {site: self.joint.factors[site] for site in factors}
        forms: dict[LinearForm, None] = {}
        for call in self.joint.graph.live_calls(list(outputs.values())):
            if equations.has_solutions and dataflow.moves(call):
                dataflow.run(call)
                if any(id(node) in self._data for node in call.inputs):
                    forms.update(dict.fromkeys(dataflow.forms_of_results(call)))
        for site, node in outputs.items():
            dataflow.require_invariant(node, f"the log-probability of site '{site}'")
        return Demands(equations, list(forms))

    @cached_property
    def _data(self) -> set[int]:
        """Data, parameters and random numbers, and what is computed from them."""
        calls = self.joint.graph.calls
        found = {id(node) for call in calls for node in call.inputs if node.fixed}
        for call in calls:
            if any(id(node) in found for node in call.inputs):
                found.update(map(id, call.outputs))
        return found

    @cached_property
    def _zeros(self) -> dict[int, Tensor]:
        """Where tensors are zero whatever the latent values are; these entries have any degree."""
        dataflow = _Dataflow(self.joint.graph, self.grading, Equations(self.grading.field, 0), {})
        for call in self.joint.graph.live_calls(list(self.joint.factors.values())):
            dataflow.run(call)
        return dataflow.degrees


class _Dataflow:
    """The degrees of the tensors of a graph.

    Attributes:
        degrees: node -> degrees; tensors that are not among them do not change.
    """

    def __init__(
        self, graph: Graph, grading: Grading, equations: Equations, degrees: dict[int, Tensor]
    ) -> None:
        self.degrees = degrees
        self._grading, self._equations = grading, equations
        self._table = DegreeTable(grading.field, equations.num_unknowns)
        self._has_hidden_data = graph.hidden_data is not None
        self._moved: set[int] = set()

    def act_on_first_unit(self, node: Node, axis: Axis, k: int) -> None:
        """Give the first unit's entries of a latent site the k-th unknown as their degree."""
        length = node.shape[axis.dim]
        acting = torch.full([length], INVARIANT, device="cpu")
        acting[axis.unit_coordinates(length)[0]] = self._table.unknown(k)
        along = acting.view(-1, *(1,) * (-1 - axis.dim))
        self._moved.add(id(node))
        self.degrees[id(node)] = self._table.sum(self._degrees_of(node), along)

    def moves(self, call: Call) -> bool:
        """Whether the action changes an argument of a call."""
        return any(id(node) in self._moved for node in call.inputs)

    def run(self, call: Call) -> None:
        """Find the degrees of a call's results."""
        shapes = tuple(node.shape for node in call.outputs)
        rules = self._rules(call.name.replace("::", "."), call.source, shapes)
        arguments = tree_map(
            lambda leaf: self._degrees_of(leaf) if isinstance(leaf, Node) else leaf, call.arguments
        )
        results = self._apply_rule(call, rules, arguments)
        if results is None:
            for leaf in tree_leaves(arguments):
                if isinstance(leaf, Tensor):
                    rules.refuse(leaf)
            results = [rules.invariant(k) for k in range(len(shapes))]
        for node, degrees in zip(call.outputs, results, strict=True):
            if bool((degrees > INVARIANT).any()):
                self._moved.add(id(node))
            if bool((degrees != INVARIANT).any()) and not node.fixed:
                self.degrees[id(node)] = degrees

    def forms_of_results(self, call: Call) -> Iterator[LinearForm]:
        """The degrees other than zero of what a call has computed."""
        for node in call.outputs:
            degrees = self._degrees_of(node)
            for degree in degrees[degrees > INVARIANT].unique().tolist():
                yield self._table.difference(degree, INVARIANT)

    def require_invariant(self, node: Node, what: str) -> None:
        """Demand that a tensor does not change."""
        self._rules(what, None, ()).refuse(self._degrees_of(node))

    def _apply_rule(self, call: Call, rules: GradingRules, arguments: Any) -> list[Tensor] | None:
        """The degrees of a call's results, or None if no rule fits."""
        rule = self._grading.rule_for(call)
        if rule is None or call.blame:
            return None
        found = rule(rules, *arguments)
        results = [found] if isinstance(found, Tensor) else list(found)
        if [tuple(result.shape) for result in results] != list(rules.result_shapes):
            return None
        masks = [r for r, node in zip(results, call.outputs, strict=True) if node.is_mask]
        return None if any(bool((mask > INVARIANT).any()) for mask in masks) else results

    def _rules(
        self, operation: str, source: str | None, shapes: tuple[tuple[int, ...], ...]
    ) -> GradingRules:
        return GradingRules(self._grading, self._table, self._equations, operation, source, shapes)

    def _degrees_of(self, node: Node) -> Tensor:
        known = self.degrees.get(id(node))
        if known is not None:
            return known
        if node.content is None or self._may_be_data(node.content):
            return torch.tensor(INVARIANT, device="cpu").expand(node.shape)
        return self._grading.degrees_of(node.content.cpu()).expand(node.shape)

    def _may_be_data(self, content: Tensor) -> bool:
        """Whether a constant's zeros may be elsewhere in the next call."""
        is_uniform = bool((content == content.flatten()[:1]).all())
        return self._has_hidden_data and not is_uniform
