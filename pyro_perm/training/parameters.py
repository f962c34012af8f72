"""All that training changes in a model and its guide, kept and put back in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn

Program = Callable[..., Any]


class TrainedTensors:
    """Parameters and buffers of model and guide, and what Pyro's store holds besides.

    Values are written in place, so that optimizers go on with the same tensors.

    :param model: the model; ``guide`` likewise. They have run, so that their parameters exist.
    """

    def __init__(self, model: Program, guide: Program) -> None:
        self._tensors: dict[str, Tensor] = {}
        seen: set[int] = set()

        def add(name: str, tensor: Any) -> None:
            if isinstance(tensor, Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                self._tensors[name] = tensor

        for role, program in (("model", model), ("guide", guide)):
            if isinstance(program, nn.Module):
                for name, tensor in program.state_dict(keep_vars=True).items():
                    add(f"{role}.{name}", tensor)
        for name, tensor in pyro.get_param_store().named_parameters():
            add(f"store.{name}", tensor)

    def copy(self) -> dict[str, Tensor]:
        """The values as they are now."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    def require_same(self, values: Mapping[str, Tensor]) -> None:
        """Refuse values of other parameters.

        :raises ValueError: if they are of other parameters; names one.
        """
        for name in sorted(self._tensors.keys() ^ values.keys()):
            owner = "the run has" if name in self._tensors else "the checkpoint has"
            raise ValueError(f"the checkpoint is of another model or guide: only {owner} '{name}'")
        for name, value in values.items():
            shape = self._tensors[name].shape
            if value.shape != shape:
                raise ValueError(
                    f"the checkpoint is of another model or guide: '{name}' has shape "
                    f"{tuple(shape)} here, and {tuple(value.shape)} there"
                )

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Put values back.

        :raises ValueError: if they are of other parameters; names one.
        """
        self.require_same(values)
        with torch.no_grad():
            for name, value in values.items():
                self._tensors[name].copy_(value)
