"""A fixed seed while a program runs, and the random state as it was after that."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pyro
import torch


@contextmanager
def fixed_seed() -> Iterator[None]:
    """As ``poutine.seed(rng_seed=0)``, at no cost for devices that are not there."""
    state = pyro.util.get_rng_state()
    fix_seed()
    try:
        yield
    finally:
        pyro.util.set_rng_state(state)


def fix_seed() -> None:
    """As ``pyro.set_rng_seed(0)``, at no cost for devices that are not there.

    For each kind of device that is not in use ``torch.manual_seed`` formats the stack of its
    callers, to name it in an error of later, and that takes longer than to run a small model.
    """
    if _has_accelerator():
        pyro.set_rng_seed(0)
    else:
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)


@cache
def _has_accelerator() -> bool:
    if hasattr(torch, "accelerator"):  # from torch 2.6 on
        return torch.accelerator.is_available()
    kinds = (torch.cuda, torch.backends.mps, torch.xpu, torch.mtia)
    return any(kind.is_available() for kind in kinds)
