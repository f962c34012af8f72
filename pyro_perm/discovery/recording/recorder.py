"""Recording the tensor operations of a running model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_perm.discovery.recording.fused_cells import FUSED_CELLS
from pyro_perm.discovery.recording.graph import OVERLAY, Call, Graph, Node
from pyro_perm.discovery.recording.memory import (
    in_storage,
    overlap,
    places_of,
    storages_of,
    whole_storage,
)
from pyro_perm.program._torch_internals import (
    VALUE_READERS,
    EagerDispatchMode,
    arguments_of,
    is_composite,
    tensors_of,
    tree_leaves,
    tree_map,
    writes,
)
from pyro_perm.program.isolation import written_tensors
from pyro_perm.program.source_lines import is_validation, source_line

# The result does not depend on the values of the argument.
_SHAPE_ONLY = {
    f"aten::{name}"
    for name in (
        *("zeros_like", "ones_like", "full_like"),
        *("new_zeros", "new_ones", "new_full"),
    )
}

# What memory held before is no content of the model: its entries count as equal.
_EMPTY = {
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
}

# These read values only to raise errors, which cannot change the log joint.
_CHECKS = ("aten::_linalg_check_errors", "aten::_validate_sparse_coo_tensor_args")

_DROPOUTS = ("aten::bernoulli_", "aten::native_dropout")

_TRAINING = ("train", "training")


class ReadWatch(TorchFunctionMode):
    """Tells a recorder of the tensor methods that read values without an operation."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in VALUE_READERS:
            self._recorder.add_read(args[0], func.__name__)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Write:
    """What was written in place, and where."""

    node: Node
    view: Tensor


class Recorder(EagerDispatchMode):
    """Records every operation that involves a tensor it was told about, or computed from one.

    Tensors that it was not told about are constants of the model: operations among them are only
    carried out, and their content is kept where they meet a recorded tensor.

    Whoever reads a tensor whose memory was written through another one reads what was there before,
    overwritten in the places that the other has in it.

    Attributes:
        graph: what was recorded.
        context: stands in for the source line of operations outside of the model's code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.context: str | None = None
        self._nodes: dict[int, tuple[Node, int]] = {}
        self._kept: list[Tensor] = []
        self._fixed_storages: dict[int, str] = {}
        self._writes: defaultdict[int, list[_Write]] = defaultdict(list)
        self._owners: dict[int, Tensor] = {}  # storage -> the first tensor seen there
        self._constants: dict[int, Tensor] = {}  # before the first write into them

    def add_latent(self, tensor: Tensor, site: str) -> Node:
        """Announce a latent site's value."""
        return self._add(tensor, _node_of(tensor, site=site))

    def add_fixed(self, tensor: Tensor, what: str) -> None:
        """Announce a tensor that is not latent, unless the model computed it.

        :param what: what the tensor is, to be read after "tied to dim 0 of".
        """
        if id(tensor) not in self._nodes:
            self._add(tensor, _node_of(tensor, fixed=what))
            self._fixed_storages.update(dict.fromkeys(storages_of(tensor), what))

    def node(self, tensor: Tensor) -> Node:
        """The node of a tensor as it is now."""
        known = self._nodes.get(id(tensor)) or self._alias(tensor)
        node, version = known or (self._unseen_node(tensor), 0)
        new = self._writes_into(tensor)[version:]
        for write in new:
            node = self._after_write(tensor, node, write)
        return self._add(tensor, node) if known or new or node.fixed else node

    def _alias(self, tensor: Tensor) -> tuple[Node, int] | None:
        """The node of a tensor that was made from another one by no operation, as ``x.data`` is."""
        for storage in storages_of(tensor):
            owner = self._owners.get(storage)
            is_computed = storage not in self._fixed_storages and storage not in self._constants
            if owner is not None and is_computed:
                node, version = self._nodes[id(owner)]
                return self._overlay(tensor, None, node, owner), version
        return None

    def _unseen_node(self, tensor: Tensor) -> Node:
        """What an unknown tensor was before anything was written into it."""
        what = self._what_is_fixed(tensor)
        if what is None and tensor.requires_grad:
            what = "a parameter"
        if what is None and tensor.layout != torch.strided:
            what = "a sparse constant"
        if what is not None:
            return _node_of(tensor, fixed=what)
        if not self._writes_into(tensor):
            return _node_of(tensor, content=_snapshot(tensor))
        (storage,) = storages_of(tensor)
        return _node_of(tensor, content=_snapshot(in_storage(self._constants[storage], tensor)))

    def _after_write(self, tensor: Tensor, node: Node, write: _Write) -> Node:
        """What a tensor is after a write through a view of its memory."""
        if not overlap(write.view, tensor):
            return node
        return self._overlay(tensor, node, write.node, write.view)

    def _overlay(self, tensor: Tensor, before: Node | None, node: Node, where: Tensor) -> Node:
        """What a tensor is where another one lies over it."""
        covering, inside = places_of(tensor, where), places_of(where, tensor)
        result = _node_of(tensor)
        inputs = [node] if before is None or covering is not None else [before, node]
        arguments = before, node, covering, inside
        source = source_line() or self.context
        self.graph.calls.append(Call(OVERLAY, "", arguments, inputs, [result], source=source))
        return result

    def add_read(self, tensor: Tensor, method: str) -> None:
        """Note that values leave the tensors, where operations on them cannot be followed."""
        if self._is_recorded(tensor):
            node = self.node(tensor)
            call = Call(f"Tensor.{method}", "", (node,), [node], [], source=source_line())
            call.is_read = True
            self.graph.calls.append(call)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name, _, overload = func.name().partition(".")
        if name in _EMPTY:
            return func(*args, **kwargs).zero_()
        if name in _SHAPE_ONLY:
            return func(*args, **kwargs)
        is_random = _draws(func, args, kwargs)
        if not (is_random or any(map(self._is_recorded, tensors_of(*args, *kwargs.values())))):
            return func(*args, **kwargs)
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if name in FUSED_CELLS:
            with self:
                return FUSED_CELLS[name](*args, **kwargs)
        arguments = self._to_nodes(_bind(func, args, kwargs))
        written = written_tensors(func, args, kwargs)
        self._keep_constants(written)
        result = func(*args, **kwargs)
        call = Call(
            name=name.rstrip("_") if writes(func) else name,
            overload=overload,
            arguments=arguments,
            inputs=[leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Node)],
            outputs=[],
            source=source_line() or self.context,
            blame=f"argument of the random {name}" if is_random else None,
        )
        drawn = None
        if name in _DROPOUTS:
            drawn = "the random mask of dropout"
            self.graph.dropouts[str(call.source)] = None
        elif is_random:
            drawn = f"random numbers drawn by {name}"
        self._record(call, written, result, drawn)
        return result

    def _keep_constants(self, written: Iterable[Tensor]) -> None:
        """Copy the memory of constants that are about to be written."""
        for tensor in written:
            if tensor.layout == torch.strided and not self._is_recorded(tensor):
                for storage in storages_of(tensor):
                    self._constants[storage] = whole_storage(tensor)

    def _record(self, call: Call, written: list[Tensor], result: Any, fixed: str | None) -> None:
        outputs = [*tensors_of(result)]
        outputs += [t for t in written if not any(t is output for output in outputs)]
        call.outputs = [_node_of(tensor, fixed=fixed) for tensor in outputs]
        for tensor, node in zip(outputs, call.outputs, strict=True):
            if any(tensor is target for target in written):
                for storage in storages_of(tensor):
                    self._writes[storage].append(_Write(node, tensor.detach()))
        for tensor, node in zip(outputs, call.outputs, strict=True):
            self._add(tensor, node)
        for tensor in written:
            what = self._what_is_fixed(tensor)
            if what is not None and tensor.dim():
                self.graph.updated_buffers[what] = None
        call.is_read = not outputs
        if call.is_read and (call.name in _CHECKS or is_validation()):
            return
        if call.is_read and call.source is not None:
            self.graph.reads[call.source] = None
        self.graph.calls.append(call)

    def _add(self, tensor: Tensor, node: Node) -> Node:
        self._kept.append(tensor)  # so that its id is not given to another tensor
        for storage in storages_of(tensor):
            self._owners.setdefault(storage, tensor)
        self._nodes[id(tensor)] = node, len(self._writes_into(tensor))
        return node

    def _is_recorded(self, tensor: Tensor) -> bool:
        return (
            id(tensor) in self._nodes
            or tensor.requires_grad
            or any(storage in self._owners for storage in storages_of(tensor))
        )

    def _writes_into(self, tensor: Tensor) -> list[_Write]:
        return [w for storage in storages_of(tensor) for w in self._writes.get(storage, ())]

    def _what_is_fixed(self, tensor: Tensor) -> str | None:
        found = (self._fixed_storages.get(storage) for storage in storages_of(tensor))
        return next(filter(None, found), None)

    def _to_nodes(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nodes: tuple[Any, ...] = tree_map(
            lambda leaf: self.node(leaf) if isinstance(leaf, Tensor) else leaf, arguments
        )
        return nodes


def _node_of(tensor: Tensor, **options: Any) -> Node:
    return Node(tuple(tensor.shape), tensor.dtype == torch.bool, **options)


def _bind(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The values of an operation's arguments, defaults included, in order."""
    rest = arguments_of(operation)[len(args) :]
    return (*args, *(kwargs.get(a.name, a.default_value) for a in rest))


def _draws(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers, which some do only where they are training."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return False
    bound = zip(arguments_of(operation), _bind(operation, args, kwargs), strict=True)
    return not any(argument.name in _TRAINING and value is False for argument, value in bound)


def _snapshot(tensor: Tensor) -> Tensor:
    """A copy of a constant; the dimensions along which it was expanded are cut to one entry."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor.detach().cpu().clone()
