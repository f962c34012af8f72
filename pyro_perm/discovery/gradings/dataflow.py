"""Following degrees from latent sites through the operations of a log joint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pyro_perm.discovery.gradings.degrees import INVARIANT, DegreeTable
from pyro_perm.discovery.gradings.linear_equations import Equations
from pyro_perm.discovery.gradings.rules import Grading, GradingRules
from pyro_perm.discovery.recording.graph import Call, Node
from pyro_perm.discovery.recording.log_joint import LogJoint
from pyro_perm.symmetry.axis import Axis

Sites = Mapping[str, tuple[Axis, ...]]
Unknown = tuple[str, Axis]


def equations_of(
    joint: LogJoint, grading: Grading, unknowns: Sequence[Unknown], factors: Iterable[str]
) -> Equations:
    """What must hold for the degrees of a unit's entries if some factors are not to change.

    :param unknowns: the axes whose degrees are unknown, each with its site; every other latent
        entry is left alone.
    :param factors: names of the sites whose log-probabilities must not change.
    """
    equations = Equations(grading.field, len(unknowns))
    dataflow = _Dataflow(joint, grading, equations, unknowns)
    outputs = {site: joint.factors[site] for site in factors}
    for call in joint.graph.live_calls(list(outputs.values())):
        if not equations.has_solutions:
            break
        dataflow.run(call)
    for site, node in outputs.items():
        dataflow.require_invariant(node, f"the log-probability of site '{site}'")
    return equations


class _Dataflow:
    """The degrees of the tensors of a graph; tensors that are not known yet do not change."""

    def __init__(
        self,
        joint: LogJoint,
        grading: Grading,
        equations: Equations,
        unknowns: Sequence[Unknown],
    ) -> None:
        self._grading, self._equations = grading, equations
        self._table = DegreeTable(grading.field, len(unknowns))
        self._has_hidden_data = joint.graph.hidden_data is not None
        self._degrees: dict[int, Tensor] = {}
        for k, (site, axis) in enumerate(unknowns):
            self._act_on_first_unit(joint.latents[site].node, axis, self._table.unknown(k))

    def run(self, call: Call) -> None:
        """Find the degrees of a call's results."""
        if not any(id(node) in self._degrees for node in call.inputs):
            return
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
            return
        for node, degrees in zip(call.outputs, results, strict=True):
            if bool((degrees != INVARIANT).any()):
                self._degrees[id(node)] = degrees

    def require_invariant(self, node: Node, what: str) -> None:
        """Demand that a tensor does not change."""
        self._rules(what, None, ()).refuse(self._degrees_of(node))

    def _act_on_first_unit(self, node: Node, axis: Axis, degree: int) -> None:
        degrees = self._degrees.get(id(node), torch.full(node.shape, INVARIANT))
        coordinates = torch.arange(node.shape[axis.dim])
        acting = torch.full_like(coordinates, INVARIANT)
        acting[replace(axis, dim=-1).units(coordinates, 1)[0]] = degree
        along = acting.view(-1, *(1,) * (-1 - axis.dim))
        self._degrees[id(node)] = self._table.sum(degrees, along)

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
        known = self._degrees.get(id(node))
        if known is not None:
            return known
        if node.content is None or self._may_be_data(node.content):
            return torch.full(node.shape, INVARIANT)
        return self._grading.degrees_of(node.content.cpu()).expand(node.shape)

    def _may_be_data(self, content: Tensor) -> bool:
        """Whether a constant's zeros may be elsewhere in the next call."""
        is_uniform = bool((content == content.flatten()[:1]).all())
        return self._has_hidden_data and not is_uniform
