"""Where batches come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_perm.program._torch_internals import tree_leaves
from pyro_perm.program.batches import Arguments, arguments_of


@dataclass(frozen=True)
class TensorBatches:
    """Tensors of equal length in minibatches, shuffled anew each epoch by PyTorch's generator.

    Attributes:
        tensors: arguments of the model, each with one entry an observation.
        size: of a minibatch, the last of an epoch being smaller; None takes all at once.
    """

    tensors: tuple[Tensor, ...]
    size: int | None

    def __post_init__(self) -> None:
        lengths = {len(tensor) for tensor in self.tensors}
        if len(lengths) != 1:
            shapes = [tuple(tensor.shape) for tensor in self.tensors]
            raise ValueError(f"the tensors of data= must be of equal length, but have {shapes}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"batch_size must be positive, but is {self.size}")

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.size is None or self.size >= self.num_data:
            yield self.tensors
            return
        for index in torch.randperm(self.num_data, device="cpu").split(self.size):
            yield tuple(tensor[index.to(tensor.device)] for tensor in self.tensors)

    @property
    def num_data(self) -> int:
        """Number of observations."""
        return len(self.tensors[0])


def as_batches(data: Any, batch_size: int | None) -> Iterable[Any]:
    """Minibatches of tensors, or the loader that was given.

    :raises ValueError: if a loader comes with a batch size, which it knows itself.
    :raises TypeError: if the data are neither.
    """
    if isinstance(data, Tensor):
        return TensorBatches((data,), batch_size)
    if isinstance(data, tuple | list) and data and all(isinstance(d, Tensor) for d in data):
        return TensorBatches(tuple(data), batch_size)
    if batch_size is not None:
        raise ValueError("batch_size= is for tensors: a loader makes its batches itself")
    if not isinstance(data, Iterable) or isinstance(data, Iterator):
        raise TypeError(
            "data must be a tensor, a tuple of tensors, or a loader that can be iterated over once "
            f"an epoch, such as a DataLoader, but is a {type(data).__name__}"
        )
    return data


def arguments_of_batch(batch: Any, number: int) -> Arguments:
    """What a model is called with for a batch.

    :param number: of the batch in its epoch, from one.
    :raises ValueError: if all of its tensors are empty: a step on it would be one on the prior.
    """
    arguments = arguments_of(batch)
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    if tensors and not any(tensor.numel() for tensor in tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            f"batch {number} of the data holds no observations: its tensors have shape {shapes}; "
            "leave such batches out, as a DataLoader does with drop_last=True"
        )
    return arguments


def num_data_of(batches: Iterable[Any]) -> int | None:
    """Number of observations in an epoch, where it is known."""
    if isinstance(batches, TensorBatches):
        return batches.num_data
    dataset: Any = getattr(batches, "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else None


def sizes_of(batches: Iterable[Any]) -> dict[str, str]:
    """Numbers of rows in all and in a batch, by name, as far as they are known."""
    size = batches.size if isinstance(batches, TensorBatches) else None
    return {
        "number of rows": str(num_data_of(batches)),
        "batch size": str(getattr(batches, "batch_size", size)),
    }
