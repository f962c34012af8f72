"""A training run on disk: written whole or not at all, read without running code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

_VERSION = 2


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of numbers, strings, tensors, lists and dictionaries.

    A run that is killed meanwhile leaves the earlier file as it was.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"version": _VERSION, **state}, unfinished)
    os.replace(unfinished, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What :func:`write_checkpoint` wrote.

    :raises ValueError: if the file is no checkpoint of this kind.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever PyTorch makes of a foreign or a cut file.
        raise ValueError(
            f"'{path}' is no checkpoint of pyro_perm.fit, or damaged: {error}"
        ) from error
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise ValueError(f"'{path}' is no checkpoint of pyro_perm.fit, or of another version")
    return state


class RandomState:
    """The random generators that a run draws from: PyTorch's, and those of its loader.

    :param batches: the loader; its ``generator`` counts, if it has one.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        generator = getattr(batches, "generator", None)
        self._own = [generator] if isinstance(generator, torch.Generator) else []

    def get(self) -> list[torch.Tensor]:
        """The generators' states."""
        return [
            torch.get_rng_state(),
            *(generator.get_state() for generator in self._own),
            *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []),
        ]

    def set(self, states: Sequence[torch.Tensor]) -> None:
        """Put states back."""
        first, *others = states
        torch.set_rng_state(first)
        for generator, state in zip(self._own, others, strict=False):
            generator.set_state(state)
        if devices := others[len(self._own) :]:
            torch.cuda.set_rng_state_all(devices)
