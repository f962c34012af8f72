"""Which of the found groups may also flip the signs of their units, and along which axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.utils._pytree import tree_leaves, tree_map

from pyro_perm.discovery.gradings.parity import (
    INVARIANT,
    MAX_UNKNOWNS,
    ZERO,
    Equations,
    ParityRules,
)
from pyro_perm.discovery.gradings.parity_rules import parity_rule_for
from pyro_perm.discovery.permutations.algebra import Reason
from pyro_perm.discovery.recording.graph import Call, Node
from pyro_perm.discovery.recording.log_joint import LogJoint
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import unwrapped

Sites = Mapping[str, tuple[Axis, ...]]
Unknown = tuple[str, Axis]


def with_signs(
    joint: LogJoint, spec: Mapping[str, Sites]
) -> tuple[dict[str, dict[str, tuple[Axis, ...]]], dict[str, str]]:
    """The groups, with signs on the axes that flip.

    A group has at most one flip of a unit: of several, the one along most axes is taken.

    :param spec: group -> site -> axes, as found.
    :returns: the groups, and for those without signs the reason.
    """
    signed, reasons = {}, {}
    for group, sites in spec.items():
        flipping, why = _flipping_axes(joint, sites)
        if not flipping:
            reasons[f"sign of {group}"] = str(why)
        signed[group] = {
            site: tuple(replace(axis, sign=(site, axis) in flipping) for axis in axes)
            for site, axes in sites.items()
        }
    return signed, reasons


def _flipping_axes(joint: LogJoint, sites: Sites) -> tuple[set[Unknown], Reason | None]:
    unknowns = [
        (site, axis)
        for site, axes in sites.items()
        for axis in axes
        if isinstance(unwrapped(joint.latents[site].support), type(constraints.real))
    ]
    if not unknowns:
        return set(), Reason("no site of the group has the whole real line as its support")
    if len(unknowns) > MAX_UNKNOWNS:
        return set(), Reason(f"the group has more than {MAX_UNKNOWNS} axes")
    dataflow = _Dataflow(Equations(len(unknowns)), _parities_of_latents(joint, unknowns))
    outputs = list(joint.factors.values())
    for call in joint.graph.live_calls(outputs):
        dataflow.run(call)
    for site, node in joint.factors.items():
        dataflow.require_invariant(node, f"the log-probability of site '{site}'")
    equations = dataflow.equations
    best = max(equations.solutions(), key=int.bit_count, default=0)
    flipping = {unknown for k, unknown in enumerate(unknowns) if best >> k & 1}
    return flipping, equations.cause


def _parities_of_latents(joint: LogJoint, unknowns: list[Unknown]) -> dict[int, Tensor]:
    """What flipping the first unit does to the latent sites, node -> parity."""
    parities: dict[int, Tensor] = {}
    for k, (site, axis) in enumerate(unknowns):
        node = joint.latents[site].node
        parity = parities.setdefault(id(node), torch.zeros(node.shape, dtype=torch.long))
        length = node.shape[axis.dim]
        first_unit = replace(axis, dim=-1).units(torch.arange(length), 1)[0]
        parity.movedim(axis.dim, 0)[first_unit] ^= 1 << k
    return parities


class _Dataflow:
    """The parities of the tensors of a graph.

    :param equations: collects what the operations demand.
    :param parities: node -> parity; all other nodes do not change.
    """

    def __init__(self, equations: Equations, parities: dict[int, Tensor]) -> None:
        self.equations = equations
        self._parities = parities

    def run(self, call: Call) -> None:
        """Find the parities of a call's results."""
        if not any(id(node) in self._parities for node in call.inputs):
            return
        shapes = tuple(node.shape for node in call.outputs)
        operation = call.name.replace("::", ".")
        rules = ParityRules(self.equations, operation, call.source, shapes)
        arguments = tree_map(
            lambda leaf: self._parity(leaf) if isinstance(leaf, Node) else leaf, call.arguments
        )
        results = _apply_rule(call, rules, arguments)
        if results is None:
            for leaf in tree_leaves(arguments):
                if isinstance(leaf, Tensor):
                    rules.refuse(leaf)
            return
        for node, parity in zip(call.outputs, results, strict=True):
            if bool(parity.any()):
                self._parities[id(node)] = parity

    def require_invariant(self, node: Node, what: str) -> None:
        """Demand that a tensor does not change."""
        ParityRules(self.equations, what, None, ()).refuse(self._parity(node))

    def _parity(self, node: Node) -> Tensor:
        known = self._parities.get(id(node))
        if known is not None:
            return known
        if node.content is not None:
            return torch.where(node.content.cpu() == 0, ZERO, INVARIANT).expand(node.shape)
        return torch.zeros(node.shape, dtype=torch.long)


def _apply_rule(call: Call, rules: ParityRules, arguments: Any) -> list[Tensor] | None:
    """The parities of a call's results, or None if no rule fits."""
    rule = parity_rule_for(call)
    turns_to_booleans = any(node.is_mask for node in call.outputs)
    if rule is None or call.blame or turns_to_booleans:
        return None
    found = rule(rules, *arguments)
    results = [found] if isinstance(found, Tensor) else list(found)
    fits = [tuple(result.shape) for result in results] == list(rules.result_shapes)
    return results if fits else None
