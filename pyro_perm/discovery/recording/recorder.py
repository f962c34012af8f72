"""Recording the tensor operations of a running model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from pyro_perm.discovery.recording.graph import Call, Graph, Node
from pyro_perm.program.dispatch_mode import EagerDispatchMode
from pyro_perm.program.isolation import written_tensors
from pyro_perm.program.source_lines import is_validation, source_line

aten = torch.ops.aten

# Composite operations whose parts have rules.
_DECOMPOSITIONS = get_decompositions([aten.glu, aten.native_dropout])

# The result does not depend on the values of the argument.
_SHAPE_ONLY = {
    f"aten::{name}"
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    )
}

_READS = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_STALE = "pyro_perm::stale_read"


class ReadWatch(TorchFunctionMode):
    """Tells a recorder of the tensor methods that read values without an operation."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _READS:
            self._recorder.add_read(args[0], func.__name__)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Write:
    """What was written in place, and a view of where."""

    node: Node
    view: Tensor

    def overlaps(self, tensor: Tensor) -> bool:
        """Whether a tensor that shares the storage has an entry where this was written."""
        length = self.view.untyped_storage().nbytes() // self.view.element_size()
        mask = torch.zeros(length, dtype=torch.bool)
        mask.as_strided(*_geometry(self.view)).fill_(True)
        return bool(mask.as_strided(*_geometry(tensor)).any())


class Recorder(EagerDispatchMode):
    """Records every operation that involves a tensor it was told about, or computed from one.

    Tensors that it was not told about are constants of the model: operations among them are only
    carried out, and their content is kept where they meet a recorded tensor.

    Writes into part of a tensor would have to be followed through every view of its storage.
    Instead, whoever reads a tensor whose storage was written through another view reads a frozen
    tensor, and all that was ever written there is frozen.

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

    def add_latent(self, tensor: Tensor, site: str) -> Node:
        """Announce a latent site's value."""
        return self._add(tensor, _node_of(tensor, site=site))

    def add_fixed(self, tensor: Tensor, what: str) -> None:
        """Announce a tensor that is not latent, unless the model computed it.

        :param what: what the tensor is, to be read after "tied to dim 0 of".
        """
        if id(tensor) not in self._nodes:
            self._add(tensor, _node_of(tensor, fixed=what))
            self._fixed_storages[_storage(tensor)] = what

    def node(self, tensor: Tensor) -> Node:
        """The node of a tensor as it is now."""
        known = self._nodes.get(id(tensor))
        node, version = known or (None, 0)
        written = [
            write.node
            for write in self._writes.get(_storage(tensor), [])[version:]
            if write.overlaps(tensor)
        ]
        if written:
            return self._stale(tensor, written if node is None else [node, *written])
        if node is not None:
            return node
        what = self._fixed_storages.get(_storage(tensor))
        if what is None and tensor.requires_grad:
            what = "a parameter"
        if what is not None:
            return self._add(tensor, _node_of(tensor, fixed=what))
        return _node_of(tensor, content=_snapshot(tensor))

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
        if func in _DECOMPOSITIONS:
            with self:
                return _DECOMPOSITIONS[func](*args, **kwargs)
        if func._schema.name in _SHAPE_ONLY:
            return func(*args, **kwargs)
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if not is_random and not any(map(self._is_recorded, _tensors((args, kwargs)))):
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE):
            with self:
                return func.decompose(*args, **kwargs)
        arguments = self._to_nodes(_bind(func._schema, args, kwargs))
        inputs = [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, Node)]
        written = written_tensors(func, args, kwargs)
        result = func(*args, **kwargs)
        self._record(func, arguments, inputs, written, result, is_random)
        return result

    def _record(
        self,
        func: Any,
        arguments: tuple[Any, ...],
        inputs: list[Node],
        written: list[Tensor],
        result: Any,
        is_random: bool,
    ) -> None:
        outputs = _tensors(result)
        outputs += [t for t in written if not any(t is output for output in outputs)]
        name = func._schema.name
        fixed = f"random numbers drawn by {name}" if is_random else None
        nodes = [_node_of(tensor, fixed=fixed) for tensor in outputs]
        for tensor, node in zip(outputs, nodes, strict=True):
            if any(tensor is target for target in written):
                self._writes[_storage(tensor)].append(_Write(node, tensor.detach()))
        for tensor, node in zip(outputs, nodes, strict=True):
            self._add(tensor, node)
        source = source_line() or self.context
        self.graph.updated_buffers.update(
            dict.fromkeys(
                self._fixed_storages[_storage(tensor)]
                for tensor in written
                if tensor.dim() and _storage(tensor) in self._fixed_storages
            )
        )
        is_read = not outputs
        if is_read and is_validation():
            return
        if is_read and source is not None:
            self.graph.reads[source] = None
        call = Call(
            name=name.rstrip("_") if func._schema.is_mutable else name,
            overload=func._overloadname,
            arguments=arguments,
            inputs=inputs,
            outputs=nodes,
            source=source,
            blame=f"argument of the random {name}" if is_random else None,
            is_read=is_read,
        )
        self.graph.calls.append(call)

    def _add(self, tensor: Tensor, node: Node) -> Node:
        self._kept.append(tensor)  # so that its id is not given to another tensor
        self._nodes[id(tensor)] = node, len(self._writes.get(_storage(tensor), ()))
        return node

    def _is_recorded(self, tensor: Tensor) -> bool:
        return (
            id(tensor) in self._nodes
            or tensor.requires_grad
            or _storage(tensor) in self._fixed_storages
            or _storage(tensor) in self._writes
        )

    def _stale(self, tensor: Tensor, written: Iterable[Node]) -> Node:
        source, inputs = source_line() or self.context, list(written)
        node = _node_of(tensor, fixed="a tensor written in place through a view")
        blame = "written in place through a view; use torch.stack or torch.cat"
        self.graph.calls.append(
            Call(_STALE, "", (inputs,), inputs, [node], source=source, blame=blame)
        )
        return self._add(tensor, node)

    def _to_nodes(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nodes: tuple[Any, ...] = tree_map(
            lambda leaf: self.node(leaf) if isinstance(leaf, Tensor) else leaf, arguments
        )
        return nodes


def _node_of(tensor: Tensor, **options: Any) -> Node:
    return Node(tuple(tensor.shape), tensor.dtype == torch.bool, **options)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _geometry(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def _bind(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The values of a schema's arguments, defaults included, in order."""
    rest = schema.arguments[len(args) :]
    return (*args, *(kwargs.get(a.name, a.default_value) for a in rest))


def _snapshot(tensor: Tensor) -> Tensor:
    """A copy of a constant; the dimensions along which it was expanded are cut to one entry."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor.detach().clone()
