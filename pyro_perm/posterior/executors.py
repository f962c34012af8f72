"""Evaluate in other processes, with the numbers that this one would give.

A guide travels as its file does (:mod:`pyro_perm.saving`), since Pyro takes the model away from an
autoguide that is pickled, the original included. With it go the random state, the default
precision, and what the param store holds besides the guide.
"""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.program._torch_internals import tree_map
from pyro_perm.program.call import model_of
from pyro_perm.program.modules import modules_among, tensors_of_modules
from pyro_perm.saving import load, save

Program = Callable[..., Any]
_Result = TypeVar("_Result")

_one_at_a_time = threading.Lock()  # The random state and Pyro's handlers are those of a process.


def evaluate_each(
    function: Callable[..., _Result],
    cases: Iterable[Sequence[Any]],
    /,
    *,
    executor: Executor | None = None,
    **options: Any,
) -> list[_Result]:
    """``function(*case, **options)`` for each case, in this process or in others.

    For seeds, splits, widths, or anything else that differs from case to case: guides and their
    models, data, or both. Each case starts from the present random state, which is left as it is,
    so that the numbers are the same without an executor, and with any number of workers.

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model(x, y):
    ...     slope = pyro.sample("slope", pyro.distributions.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("y", pyro.distributions.Normal(slope * x, 1.0), obs=y)
    >>> splits = [(model, AutoNormal(model), x, x) for x in torch.randn(3, 5)]
    >>> predictions = pp.evaluate_each(pp.predict, splits, num_samples=10, progress=False)
    >>> [prediction.mean.shape for prediction in predictions]
    [torch.Size([5]), torch.Size([5]), torch.Size([5])]

    :param function: such as :func:`symmetrized_elbo`, :func:`predict` or :func:`log_evidence`; of a
        module, so that it can be pickled.
    :param cases: positional arguments of each call. They are pickled, autoguides are sent as
        :func:`save` writes them.
    :param executor: of processes: a ``ProcessPoolExecutor``, Dask's ``client.get_executor()``,
        MPI's or another; None works here, one case after the other. What is lost with a worker is
        evaluated here, with a warning.
    :param options: keywords of every call.
    :raises ValueError: if the executor works in this process, or tensors are not on the CPU.
    :raises TypeError: if a guide cannot be saved.
    """
    calls = [tuple(case) for case in cases]
    if executor is None:
        return [_from_here(function, case, options) for case in calls]
    futures = [_submit(executor, _Task.of(function, case, options)) for case in calls]
    results = []
    for case, future in zip(calls, futures, strict=True):
        found = _result(future)
        if found is None:
            warnings.warn(
                "a worker of the executor was lost: what it was to evaluate is evaluated here",
                stacklevel=2,
            )
            found = [_from_here(function, case, options)]
        results += found
    return results


def _from_here(
    function: Callable[..., _Result], case: tuple[Any, ...], options: Mapping[str, Any]
) -> _Result:
    state = pyro.util.get_rng_state()
    try:
        return function(*case, **options)
    finally:
        pyro.util.set_rng_state(state)


def _submit(executor: Executor, task: _Task) -> Future[_ByValue[Any]] | None:
    """The future of a task; None if the executor has lost its workers."""
    try:
        return executor.submit(_in_worker, _ByValue(task))
    except BrokenExecutor:
        return None


def _result(future: Future[_ByValue[Any]] | None) -> list[Any] | None:
    """The one result of a future; None if it was lost with a worker."""
    try:
        return None if future is None else [future.result().value]
    except BrokenExecutor:
        return None


@dataclass(frozen=True)
class _ByValue(Generic[_Result]):
    """What is pickled with the values of its tensors, each time that it is sent.

    multiprocessing's pickler would move their memory, a live guide's among it, to where it is
    shared, in a thread of its own: it is lost to who reads it here at that time, and what one
    process writes there, all others see.

    Attributes:
        value: what is sent.
    """

    value: _Result

    def __reduce__(self) -> tuple[Callable[..., _ByValue[_Result]], tuple[Any]]:
        buffer = io.BytesIO()
        try:
            torch.save(self.value, buffer)
        except (pickle.PicklingError, AttributeError, TypeError):
            return _ByValue, (self.value,)  # The executor's pickler may know more, as Dask's does.
        return _of_bytes, (buffer.getvalue(),)


def _of_bytes(content: bytes) -> _ByValue[Any]:
    return _ByValue(torch.load(io.BytesIO(content), weights_only=False))


@dataclass(frozen=True)
class _SentGuide:
    """An autoguide on its way.

    Attributes:
        model: its model.
        content: of its file.
        create_plates: what it was given.
    """

    model: Program
    content: bytes
    create_plates: Program | None

    @classmethod
    def of(cls, guide: AutoGuide) -> _SentGuide:
        """Pack a guide.

        :raises TypeError: if its kind cannot be saved, or it has lost its model.
        """
        model, base = model_of(guide), getattr(guide, "base", guide)
        if model is None:
            raise TypeError(
                f"this {type(guide).__name__} was copied or pickled, and Pyro took its model away: "
                "send the original"
            )
        with tempfile.TemporaryDirectory() as folder:
            save(guide, Path(folder) / "guide")
            content = (Path(folder) / "guide").read_bytes()
        return cls(model, content, base.create_plates)

    def here(self) -> AutoGuide:
        """The guide, made anew."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "guide"
            path.write_bytes(self.content)
            return load(self.model, path, create_plates=self.create_plates)


@dataclass(frozen=True)
class _Task:
    """A call, and the state of the process that it comes from.

    Attributes:
        function: what is called.
        args: its arguments, with guides packed; ``kwargs`` likewise.
        store: values of parameters that belong to no module.
        random_state: of all generators.
        dtype: the default precision.
        module_local_params: Pyro's setting.
        process: number of the process.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    store: Mapping[str, Tensor]
    random_state: Any
    dtype: torch.dtype
    module_local_params: bool
    process: int

    @classmethod
    def of(
        cls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Task:
        """Pack a call.

        :raises ValueError: if tensors are not on the CPU.
        :raises TypeError: if a guide cannot be saved.
        """
        for tensor, name in tensors_of_modules(args):
            if tensor.device.type != "cpu":
                raise ValueError(
                    f"{name} is on {tensor.device}, and an executor evaluates on the CPU, where "
                    "random numbers are others: move model and guide there, or leave out executor="
                )
        store = pyro.get_param_store()
        owned = {id(p) for module in modules_among(args) for p in module.parameters()}
        return cls(
            function=function,
            args=tree_map(_packed, args),
            kwargs=tree_map(_packed, dict(kwargs)),
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


def _packed(value: Any) -> Any:
    return _SentGuide.of(value) if isinstance(value, AutoGuide) else value


def _unpacked(value: Any) -> Any:
    return value.here() if isinstance(value, _SentGuide) else value


def _in_worker(sent: _ByValue[_Task]) -> _ByValue[Any]:
    task = sent.value
    if os.getpid() == task.process:
        raise ValueError(
            "the executor works in this process, whose random state and handlers it would share: "
            "give one with processes, such as ProcessPoolExecutor"
        )
    settings = pyro.settings.context(module_local_params=task.module_local_params)
    with _one_at_a_time, settings, pyro.get_param_store().scope():
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(task.dtype)
        try:
            store = pyro.get_param_store()
            for name, value in task.store.items():
                store[name] = value
            args, kwargs = tree_map(_unpacked, task.args), tree_map(_unpacked, task.kwargs)
            pyro.util.set_rng_state(task.random_state)
            return _ByValue(task.function(*args, **kwargs))
        finally:
            torch.set_default_dtype(dtype)
