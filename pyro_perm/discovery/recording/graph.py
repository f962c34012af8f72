"""The recorded computation of a log joint: operations between tensors, with source lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# A tensor whose memory another one shares: what it was before, under what the other one is.
OVERLAY = "pyro_perm::overlay"


@dataclass(eq=False)
class Node:
    """A tensor of the recorded computation.

    Attributes:
        shape: its shape.
        is_mask: whether its entries are booleans.
        fixed: why no dimension may be permuted, for tensors that are not computed from latent
            values: data, parameters, random numbers.
        content: the value of a constant that the model made.
        site: the name of the latent site whose value it is.
    """

    shape: tuple[int, ...]
    is_mask: bool = False
    fixed: str | None = None
    content: Tensor | None = None
    site: str | None = None


@dataclass(eq=False)
class Call:
    """One operation.

    Attributes:
        name: the operation's name without overload and in-place mark, ``"aten::add"``.
        overload: the overload's name.
        arguments: values of the schema's arguments in order, with nodes for tensors.
        inputs: all nodes among the arguments.
        outputs: the nodes it makes, in order.
        source: the model's source line.
        blame: why everything it touches must be frozen, for what no rule can describe.
        is_read: whether the program reads the result, to branch on it.
    """

    name: str
    overload: str
    arguments: tuple[Any, ...]
    inputs: list[Node]
    outputs: list[Node]
    source: str | None = None
    blame: str | None = None
    is_read: bool = False


@dataclass
class Graph:
    """All operations on tensors that depend on latent values, data, parameters or randomness.

    Attributes:
        calls: the operations, in order.
        reads: where the program reads values, to branch on them.
        hidden_data: an argument whose data may reach the model as a constant: an array, a list.
        updated_buffers: data, parameters and buffers that the program writes in place.
        dropouts: where dropout draws a mask.
    """

    calls: list[Call] = field(default_factory=list)
    reads: dict[str, None] = field(default_factory=dict)
    hidden_data: str | None = None
    updated_buffers: dict[str, None] = field(default_factory=dict)
    dropouts: dict[str, None] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """What the user should know about the analysis."""
        found = [
            f"the model reads a value at {source}; only the branch that it took was analysed"
            for source in self.reads
        ]
        if self.updated_buffers:
            found.append(
                f"{_first_of(self.updated_buffers)} is updated by the model but not permuted; use "
                "InstanceNorm or track_running_stats=False; of a plain network, call eval(), and "
                "it is permuted with its channels"
            )
        if self.dropouts:
            found.append(
                f"dropout at {_first_of(self.dropouts)} draws a random mask, which tells apart "
                "the units that it acts on; call model.eval(), or leave dropout out of the model"
            )
        return found

    def live_calls(self, outputs: list[Node]) -> list[Call]:
        """The calls that the outputs, or the program's control flow, depend on, in order."""
        needed = set(map(id, outputs))
        live = []
        for call in reversed(self.calls):
            if call.is_read or any(id(node) in needed for node in call.outputs):
                needed.update(id(node) for node in call.inputs)
                live.append(call)
        return live[::-1]


def _first_of(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} (and {len(others)} more)" if others else first
