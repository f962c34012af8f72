"""Running the axis rules over a recorded log joint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.permutations.algebra import freeze, tie
from pyro_perm.discovery.permutations.digits import settled
from pyro_perm.discovery.permutations.expressions import AxisExpr, Reason, axis_of_size, size_of
from pyro_perm.discovery.permutations.rules import AxisRules, rule_for
from pyro_perm.discovery.permutations.rules.table import AxisRule, AxisTensor, needs_products
from pyro_perm.discovery.recording.graph import Call, Graph, Node
from pyro_perm.program._torch_internals import tree_leaves, tree_map


@dataclass(frozen=True)
class Constant:
    """A constant of the model, and the axes along which it has to be invariant.

    Attributes:
        content: its value; a dimension of length one stands for equal entries along its axis.
        axes: one axis for each dimension.
        source: the model's source line that used it.
    """

    content: Tensor
    axes: tuple[AxisExpr, ...]
    source: str | None


@dataclass
class Interpreter:
    """Finds what may be permuted along the axes of every tensor of a graph.

    Attributes:
        graph: what to interpret.
        constants: collects the constants on which the result depends.
    """

    graph: Graph
    constants: list[Constant] = field(default_factory=list)
    _axes: dict[int, tuple[AxisExpr, ...]] = field(default_factory=dict)

    def run(self, outputs: list[Node]) -> None:
        """Interpret everything that the outputs depend on."""
        calls = self.graph.live_calls(outputs)
        needed = {id(node) for call in calls for node in call.inputs} | set(map(id, outputs))
        for call in calls:
            self._interpret(call, tuple(id(node) in needed for node in call.outputs))

    def axes(self, node: Node) -> tuple[AxisExpr, ...]:
        """The axes of a tensor; all of them are frozen if it is data, a parameter or random."""
        known = self._axes.get(id(node))
        if known is None:
            known = tuple(
                axis_of_size(size, _fixed_reason(node.fixed, dim) if node.fixed else None)
                for dim, size in enumerate(node.shape)
            )
            self._axes[id(node)] = known
        return known

    def _interpret(self, call: Call, is_used: tuple[bool, ...]) -> None:
        operation = call.name.replace("::", ".")
        shapes = tuple(node.shape for node in call.outputs)
        rules = AxisRules(operation, call.source, shapes, is_used)
        rule = None if call.blame else rule_for(call)
        is_settled = rule is None or needs_products(rule)
        arguments = tree_map(
            lambda leaf: self._tensor(leaf, is_settled) if isinstance(leaf, Node) else leaf,
            call.arguments,
        )
        results = _apply_rule(rule, call, rules, arguments)
        for tensor in tree_leaves(arguments):
            if isinstance(tensor, AxisTensor) and tensor not in rules.names:
                self._add_constant(tensor, call.source)
        if results is None:
            why = Reason(call.blame or _no_rule(operation), call.source)
            for node in call.inputs:
                for axis in self._axes.get(id(node), ()):
                    freeze(axis, why)
            results = [[axis_of_size(size, why) for size in shape] for shape in shapes]
        for node, axes in zip(call.outputs, results, strict=True):
            if not node.fixed:
                self._axes[id(node)] = tuple(axes)

    def _tensor(self, node: Node, is_settled: bool) -> AxisTensor:
        axes = self.axes(node)
        if is_settled or node.content is not None:
            axes = tuple(map(settled, axes))
        return AxisTensor(axes, node.is_mask, node.content)

    def _add_constant(self, tensor: AxisTensor, source: str | None) -> None:
        if tensor.content is None:
            return
        content = _compress(tensor.content)
        if self.graph.hidden_data is not None:
            why = Reason(f"tied to a constant that may come from {self.graph.hidden_data}", source)
            for axis in tensor.axes if content.numel() > 1 else ():
                freeze(axis, why)
        self.constants.append(Constant(content, tensor.axes, source))
        pair = _identity_like(content)
        if pair is not None:
            tie(tensor[pair[0]], tensor[pair[1]], Reason("tied by an identity matrix", source))


def _apply_rule(
    rule: AxisRule | None, call: Call, rules: AxisRules, arguments: Sequence[Any]
) -> list[list[AxisExpr]] | None:
    """The axes of a call's outputs, or None if no rule fits."""
    if rule is None:
        return None
    found = rule(rules, *arguments)
    results = [list(found)] if isinstance(found, list) else [list(axes) for axes in found]
    if len(results) != len(call.outputs):
        return None
    for axes, node, used in zip(results, call.outputs, rules.is_used, strict=True):
        if used and tuple(map(size_of, axes)) != node.shape:
            return None
    return results


def _fixed_reason(what: str, dim: int) -> Reason:
    if what.startswith("a tensor written"):
        return Reason(f"{what}; use torch.stack or torch.cat")
    return Reason(f"tied to dim {dim} of {what}, which is not a latent site")


def _no_rule(operation: str) -> str:
    return (
        f"no axis rule for {operation}, so everything that it touches was frozen; "
        "use register_axis_rule, or write a PermutationSymmetry"
    )


def _compress(content: Tensor) -> Tensor:
    """Cut dimensions along which all entries are equal to length one."""
    for dim in range(content.dim()):
        first = content.narrow(dim, 0, min(1, content.shape[dim]))
        if content.shape[dim] > 1 and bool((content == first).all()):
            content = first
    return content


def _identity_like(content: Tensor) -> tuple[int, int] | None:
    """The two dimensions of a multiple of the identity matrix, plus a number."""
    long = [dim for dim, size in enumerate(content.shape) if size > 1]
    if len(long) != 2 or content.shape[long[0]] != content.shape[long[1]]:
        return None
    matrix = content.squeeze()
    diagonal = matrix.diagonal()
    off = matrix[~torch.eye(len(matrix), dtype=torch.bool, device="cpu")]
    is_identity = bool((diagonal == diagonal[0]).all()) and bool((off == off[0]).all())
    return (long[0], long[1]) if is_identity else None
