"""Evaluate guides in other processes, with the numbers that this one would give.

A guide travels as its file does (:mod:`pyro_perm.saving`), since Pyro takes the model away from an
autoguide that is pickled, the original included. With it go the random state, the default
precision, and what the param store holds besides the guide.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.program.modules import modules_among
from pyro_perm.saving import load, save

Program = Callable[..., Any]
_Result = TypeVar("_Result")

_one_at_a_time = threading.Lock()  # The random state and Pyro's handlers are those of a process.


def evaluate_each(
    function: Callable[..., _Result],
    model: Program,
    guides: Sequence[Program],
    options: Mapping[str, Any],
    executor: Executor | None,
) -> list[_Result]:
    """``function(model, guide, **options)`` for each guide, in this process or in others.

    :param function: of a module, so that it can be pickled.
    :param executor: of processes; None works here, one guide after the other. What is lost with a
        worker is evaluated here, with a warning.
    :raises ValueError: if the executor works in this process.
    :raises TypeError: if a guide cannot be saved.
    """
    if executor is None:
        return [function(model, guide, **options) for guide in guides]
    futures = [
        _submit(executor, _in_worker, function, _packed(model, guide), options) for guide in guides
    ]
    results = []
    for guide, future in zip(guides, futures, strict=True):
        found = _result(future)
        if found is None:
            warnings.warn(
                "a worker of the executor was lost: what it was to evaluate is evaluated here",
                stacklevel=4,
            )
            found = [function(model, guide, **options)]
        results += found
    return results


def _submit(executor: Executor, *task: Any) -> Future[Any] | None:
    """The future of a task; None if the executor has lost its workers."""
    try:
        return executor.submit(*task)
    except BrokenExecutor:
        return None


def _result(future: Future[Any] | None) -> list[Any] | None:
    """The one result of a future; None if it was lost with a worker."""
    try:
        return None if future is None else [future.result()]
    except BrokenExecutor:
        return None


@dataclass(frozen=True)
class _Packed:
    """A model and a guide, and the state of the process that they come from.

    Attributes:
        guide: content of its file; or a guide that is a function.
        create_plates: what an autoguide was given.
        store: values of parameters that belong to no module.
        random_state: of all generators.
        dtype: the default precision.
        module_local_params: Pyro's setting.
        process: number of the process.
    """

    model: Program
    guide: bytes | Program
    create_plates: Program | None
    store: Mapping[str, Tensor]
    random_state: Any
    dtype: torch.dtype
    module_local_params: bool
    process: int

    def guide_here(self) -> Program:
        """The guide, made anew."""
        if not isinstance(self.guide, bytes):
            return self.guide
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "guide"
            path.write_bytes(self.guide)
            return load(self.model, path, create_plates=self.create_plates)


def _packed(model: Program, guide: Program) -> _Packed:
    content: bytes | Program = guide
    if isinstance(guide, AutoGuide):
        with tempfile.TemporaryDirectory() as folder:
            save(guide, Path(folder) / "guide")
            content = (Path(folder) / "guide").read_bytes()
    store = pyro.get_param_store()
    owned = {id(p) for module in modules_among((model, guide)) for p in module.parameters()}
    base = getattr(guide, "base", guide)
    return _Packed(
        model=model,
        guide=content,
        create_plates=base.create_plates if isinstance(base, AutoGuide) else None,
        store={
            name: store[name].detach().clone()
            for name, value in store.named_parameters()
            if id(value) not in owned
        },
        random_state=pyro.util.get_rng_state(),
        dtype=torch.get_default_dtype(),
        module_local_params=pyro.settings.get("module_local_params"),
        process=os.getpid(),
    )


def _in_worker(
    function: Callable[..., _Result], packed: _Packed, options: Mapping[str, Any]
) -> _Result:
    if os.getpid() == packed.process:
        raise ValueError(
            "the executor works in this process, whose random state and handlers it would share: "
            "give one with processes, such as ProcessPoolExecutor"
        )
    settings = pyro.settings.context(module_local_params=packed.module_local_params)
    with _one_at_a_time, settings, pyro.get_param_store().scope():
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(packed.dtype)
        try:
            store = pyro.get_param_store()
            for name, value in packed.store.items():
                store[name] = value
            guide = packed.guide_here()
            pyro.util.set_rng_state(packed.random_state)
            return function(packed.model, guide, **options)
        finally:
            torch.set_default_dtype(dtype)
