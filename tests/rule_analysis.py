"""What the axis rules say about an operation, and moving its arguments and results as they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.permutations.classes import colour_classes
from pyro_perm.discovery.permutations.expressions import Atom, atoms_of, denotation, resolve
from pyro_perm.discovery.permutations.interpreter import Interpreter
from pyro_perm.discovery.recording.graph import Node
from pyro_perm.discovery.recording.recorder import Recorder

Operation = Callable[..., Any]


class Analysis:
    """The axes of an operation's arguments and results.

    :param operation: the operation.
    :param arguments: its arguments, which are taken for latent values.
    """

    def __init__(self, operation: Operation, arguments: list[Tensor]) -> None:
        recorder = Recorder()
        nodes = [recorder.add_latent(x, f"x{k}") for k, x in enumerate(arguments)]
        with torch.no_grad(), recorder:
            results = tensors(operation(*arguments))
            outputs = [recorder.node(result) for result in results]
        self.interpreter = Interpreter(recorder.graph)
        self.interpreter.run(outputs)
        self.arguments, self.results = nodes, outputs
        self.atoms = list(
            dict.fromkeys(
                atom
                for node in (*nodes, *outputs)
                for axis in self.interpreter.axes(node)
                for atom in atoms_of(resolve(axis))
                if atom.frozen is None
            )
        )

    def atoms_along(self, argument: int, dim: int) -> set[Atom]:
        """The atoms along a dimension of an argument."""
        return set(atoms_of(resolve(self.interpreter.axes(self.arguments[argument])[dim])))

    def permutations(self) -> dict[Atom, Tensor]:
        """A random permutation of each atom's units, within the classes of its constants."""
        return {atom: self._within_classes(atom) for atom in self.atoms}

    def move(self, node: Node, value: Tensor, permutations: dict[Atom, Tensor]) -> Tensor:
        """A tensor, permuted along its axes."""
        for dim, axis in enumerate(self.interpreter.axes(node)):
            value = value.index_select(dim, denotation(axis, permutations))
        return value

    def _within_classes(self, atom: Atom) -> Tensor:
        labels, _ = colour_classes(atom, self.interpreter.constants)
        moved = torch.arange(atom.size)
        for label in labels.unique():
            members = (labels == label).nonzero().squeeze(1)
            moved[members] = members[torch.randperm(len(members))]
        return moved


def tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple | list) else [result]
