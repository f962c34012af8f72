"""Several processes that share a run, each with its own rows of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from pyro_perm.program.batches import Arguments
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.training.batches import TensorBatches

Parallel = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Processes:
    """Those of ``torch.distributed``; one by itself by default.

    Attributes:
        rank: number of this process, from zero on.
        num: how many there are.
    """

    rank: int = 0
    num: int = 1

    @classmethod
    def of(cls, batches: Iterable[Any]) -> Processes:
        """The processes that were started together, this one among them.

        :raises ValueError: if all would have the same rows.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        found = cls(distributed.get_rank(), distributed.get_world_size())
        if found.num > 1 and isinstance(batches, TensorBatches):
            raise ValueError(
                "parallel= shares batches among processes, and tensors would give all of them the "
                "same rows: pass a DataLoader whose sampler is a DistributedSampler"
            )
        return found

    @property
    def leads(self) -> bool:
        """Whether this one speaks for all: writes files and shows progress."""
        return self.rank == 0

    def broadcast(self, score: float) -> float:
        """That of the first process, so that all decide alike."""
        if self.num == 1:
            return score
        scores = [score]
        distributed.broadcast_object_list(scores)
        return scores[0]


class SharedLoss(nn.Module):
    """A loss as the module of the parameters that it has a gradient of, and of its buffers.

    Engines such as ``DistributedDataParallel`` wait for the gradient of every parameter, and a
    network has some that its priors replace.

    :param loss: the loss.
    :param parameters: what it has a gradient of.
    """

    def __init__(self, loss: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self._loss = (loss,)  # Not registered, and so no part of this one.
        for number, parameter in enumerate(parameters):
            self.register_parameter(f"parameter_{number}", parameter)
        for number, buffer in enumerate(loss.buffers()):
            self.register_buffer(f"buffer_{number}", buffer)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, in nats."""
        value: Tensor = self._loss[0](*args, **kwargs)
        return value


def with_gradient(
    loss: nn.Module, parameters: Iterable[tuple[str, Tensor]], call: Arguments
) -> list[nn.Parameter]:
    """Those parameters that a loss has a gradient of; leaves the random state as it was.

    :param parameters: with their names.
    :param call: a batch.
    :raises ValueError: if one belongs to no module, so that engines would not know it.
    """
    args, kwargs = call
    wanted = [(name, tensor) for name, tensor in parameters if tensor.requires_grad]
    tensors = [tensor for _, tensor in wanted]
    with fixed_seed():
        grads = torch.autograd.grad(loss(*args, **kwargs), tensors, allow_unused=True)
    found = []
    for (name, tensor), grad in zip(wanted, grads, strict=True):
        if grad is None:
            continue
        if not isinstance(tensor, nn.Parameter):
            raise ValueError(
                f"parameter '{name}' belongs to no module, so that its gradients would not be "
                "shared: make model and guide modules, such as a PyroModule and an AutoNormal"
            )
        found.append(tensor)
    return found


def start_epoch(batches: Iterable[Any], number: int) -> None:
    """Have a loader whose sampler shuffles by the number of the epoch do so.

    As ``DistributedSampler`` does, which gives each process rows of its own.
    """
    sampler: Any = getattr(batches, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(number)
