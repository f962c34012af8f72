"""Evaluate in other processes, with the numbers that this one would give.

A guide travels as its file does (:mod:`pyro_perm.saving`), since Pyro takes the model away from an
autoguide that is pickled, the original included. With it go the random state, the settings that
numbers depend on, and what the param store holds besides the guide.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_perm.posterior.sent_tensors import ByValue, checksum, in_memory_of_their_own, is_dense
from pyro_perm.program._torch_internals import tree_leaves, tree_map
from pyro_perm.program.call import model_of
from pyro_perm.program.modules import modules_among, tensors_of_modules
from pyro_perm.saving import load, save

Program = Callable[..., Any]
_Result = TypeVar("_Result")

_one_at_a_time = threading.Lock()  # The random state and Pyro's handlers are those of a process.
_copied = set[int]()  # Numbers of the processes that this one is a copy of, by fork.


def _note_copy() -> None:
    """Note who was copied; a lock that was held there would never be released here."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()
    _copied.add(os.getppid())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_copy)


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
    :raises ValueError: if the executor works in this process, tensors are not on the CPU, a handler
        of Pyro is around the call, which would not reach other processes, or a network that a
        function refers to by a global name has other values there.
    :raises TypeError: if a guide cannot be saved, or is part of something else that is sent.
    """
    calls = [tuple(case) for case in cases]
    if executor is None:
        return [_from_here(function, case, options) for case in calls]
    if am_i_wrapped():
        raise ValueError(
            "a handler of Pyro is around this call, and would not reach the processes of the "
            "executor: put it around the model, or leave out executor="
        )
    futures = [_submit(executor, _Task.of(function, case, options)) for case in calls]
    results = []
    try:
        for case, future in zip(calls, futures, strict=True):
            found = _result(future)
            if found is None:
                warnings.warn(
                    "a worker of the executor was lost: what it was to evaluate is evaluated here "
                    "(a script starts processes under `if __name__ == '__main__':` only)",
                    stacklevel=2,
                )
                found = [_from_here(function, case, options)]
            results += found
    finally:  # After an error or an interrupt nobody waits for the rest.
        for future in filter(None, futures):
            future.cancel()
    return results


def _from_here(
    function: Callable[..., _Result], case: tuple[Any, ...], options: Mapping[str, Any]
) -> _Result:
    state = pyro.util.get_rng_state()
    try:
        return function(*case, **options)
    finally:
        pyro.util.set_rng_state(state)


def _submit(executor: Executor, task: _Task) -> Future[ByValue[Any]] | None:
    """The future of a task; None if the executor has lost its workers."""
    try:
        return executor.submit(_in_worker, ByValue(task))
    except BrokenExecutor:
        return None


def _result(future: Future[ByValue[Any]] | None) -> list[Any] | None:
    """The one result of a future; None if it was lost with a worker."""
    try:
        return None if future is None else [future.result().value]
    except BrokenExecutor:
        return None


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
class _Settings:
    """What numbers depend on beside the random state, as it is set in the process that asks.

    Attributes:
        pyro: Pyro's settings.
        dtype: the default precision.
        autocast: the precision of ``torch.autocast`` on the CPU; None where it is off.
        threads: of an operation.
        process: number of the process.
    """

    pyro: Mapping[str, Any]
    dtype: torch.dtype
    autocast: torch.dtype | None
    threads: int
    process: int

    @classmethod
    def of_this_process(cls) -> _Settings:
        """Read them."""
        return cls(
            pyro=pyro.settings.get(),
            dtype=torch.get_default_dtype(),
            autocast=torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
            threads=torch.get_num_threads(),
            process=os.getpid(),
        )

    @contextmanager
    def hold_here(self) -> Iterator[None]:
        """Let them hold in this process for the while.

        A copy of the process that asks has none of its threads, and would wait for them for ever.
        """
        dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
        torch.set_default_dtype(self.dtype)
        torch.set_num_threads(1 if self.process in _copied else self.threads)
        autocast = torch.autocast("cpu", self.autocast, enabled=self.autocast is not None)
        try:
            with pyro.settings.context(**self.pyro), autocast:
                yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)


@dataclass(frozen=True)
class _Task:
    """A call, and the state of the process that it comes from.

    Attributes:
        function: what is called.
        args: its arguments, with guides packed; ``kwargs`` likewise.
        contents: checksums of the modules' tensors, guides' apart, by their place among them; of
            those that Pyro's param store will set, none.
        store: values of parameters that belong to no module.
        random_state: of all generators.
        settings: of the process.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    contents: Mapping[int, int]
    store: Mapping[str, Tensor]
    random_state: Any
    settings: _Settings

    @classmethod
    def of(
        cls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Task:
        """Pack a call.

        :raises ValueError: if tensors are not on the CPU.
        :raises TypeError: if a guide cannot be saved, or is part of something else.
        """
        _require_guides_by_themselves((function, args, kwargs))
        for tensor, name in tensors_of_modules(args):
            if tensor.device.type != "cpu":
                raise ValueError(
                    f"{name} is on {tensor.device}, and an executor evaluates on the CPU, where "
                    "random numbers are others: move model and guide there, or leave out executor="
                )
        args, kwargs = in_memory_of_their_own((args, dict(kwargs)))
        store = pyro.get_param_store()
        owned = {id(p) for module in modules_among(args) for p in module.parameters()}
        stored = {id(value) for _, value in store.named_parameters()}
        return cls(
            function=function,
            args=tree_map(_pack, args),
            kwargs=tree_map(_pack, kwargs),
            contents={
                place: checksum(tensor)
                for place, (tensor, _) in enumerate(_contents(function, args, kwargs))
                if id(tensor) not in stored
            },
            store={
                name: store[name].detach().clone()
                for name, value in store.named_parameters()
                if id(value) not in owned
            },
            random_state=pyro.util.get_rng_state(),
            settings=_Settings.of_this_process(),
        )


def _require_guides_by_themselves(sent: Any) -> None:
    """Refuse guides inside of other objects, whose pickler would take the guides' models away."""
    in_sight = {id(guide) for guide in tree_leaves(sent) if isinstance(guide, AutoGuide)}
    for module in modules_among(sent):
        if id(module) in in_sight:
            continue
        for part in module.modules():
            if isinstance(part, AutoGuide):
                raise TypeError(
                    f"a {type(part).__name__} is part of a function or an object that is sent to "
                    "other processes, which takes its model away: make the guide an argument of "
                    "its own, evaluate_each(function, [(guide, ...), ...]), or leave out executor="
                )


def _contents(*sent: Any) -> list[tuple[Tensor, str]]:
    """The tensors of modules that are sent or referred to; guides travel by a road of their own."""
    guides = {id(guide) for guide in tree_leaves(sent) if isinstance(guide, AutoGuide)}
    modules = [module for module in modules_among(sent) if id(module) not in guides]
    return [each for each in tensors_of_modules(modules) if is_dense(each[0])]


def _require_the_same(task: _Task, args: Any, kwargs: Any) -> None:
    """Refuse modules that functions refer to by name, where this process has others by the names.

    A function is pickled as its name. Its module is imported anew, and with it other networks are
    made, or none is trained.
    """
    here = _contents(task.function, args, kwargs)
    for place, expected in task.contents.items():
        if place >= len(here) or checksum(here[place][0]) != expected:
            name = here[place][1] if place < len(here) else "a module"
            raise ValueError(
                f"{name} has another value in the process of the executor, where what a function "
                "refers to by a global name is made anew: give it to the function, "
                "functools.partial(model, network), or make the model a torch.nn.Module"
            )


def _pack(value: Any) -> Any:
    return _SentGuide.of(value) if isinstance(value, AutoGuide) else value


def _unpack(value: Any) -> Any:
    return value.here() if isinstance(value, _SentGuide) else value


def _in_worker(sent: ByValue[_Task]) -> ByValue[Any]:
    task = sent.value
    if os.getpid() == task.settings.process:
        raise ValueError(
            "the executor works in this process, whose random state and handlers it would share: "
            "give one with processes, such as ProcessPoolExecutor"
        )
    with _one_at_a_time, task.settings.hold_here(), pyro.get_param_store().scope():
        store = pyro.get_param_store()
        for name, value in task.store.items():
            store[name] = value
        args, kwargs = tree_map(_unpack, task.args), tree_map(_unpack, task.kwargs)
        _require_the_same(task, args, kwargs)
        pyro.util.set_rng_state(task.random_state)
        return ByValue(task.function(*args, **kwargs))
