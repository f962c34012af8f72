"""What a program is called with: all of its data at once, or batch by batch from a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import pyro
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_perm.program.call import Call, Program, model_of, signature_of
from pyro_perm.program.inputs import Inputs

# Positional ones, and keywords.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Data:
    """The arguments of a call, or of one call for each batch.

    Iterating gives the arguments of each call, in order, as often as it is asked to.

    Attributes:
        inputs: the arguments; without the loader, if there is one.
        loader: gives a batch after the other; None where the arguments are all data.
    """

    inputs: Inputs
    loader: Iterable[Any] | None = None

    @classmethod
    def of(cls, program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Data:
        """See whether a program is to be called once, or with each batch of a loader.

        A loader is the only argument that is not passed by keyword: a ``DataLoader``, or anything
        else that can be read again and gives tuples of arguments that begin with a tensor. Where
        the program itself takes one such argument, and not those in the tuples, it is no loader.

        :raises ValueError: for an iterator, which can be read only once, and an empty loader.
        """
        if len(args) != 1 or not _gives_batches(program, args[0], kwargs):
            return cls(Inputs(args, kwargs))
        return cls(Inputs((), kwargs), args[0])

    def __iter__(self) -> Iterator[Inputs]:
        if self.loader is None:
            yield self.inputs
            return
        randomness = _OwnRandomness()
        with randomness:
            batches = iter(self.loader)
        while True:
            with randomness:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield self._inputs_of(batch)

    @cached_property
    def first_two(self) -> list[Inputs]:
        """The arguments of the first call, and of the second if there are several.

        :raises ValueError: if the loader gives no batch.
        """
        found = list(islice(self, 2))
        if not found:
            raise ValueError("the loader gives no batch")
        return found

    @property
    def first(self) -> Inputs:
        """The arguments of the first call."""
        return self.first_two[0]

    @property
    def is_split(self) -> bool:
        """Whether there are several calls."""
        return len(self.first_two) > 1

    def call(self, program: Program) -> Call:
        """The first call of a program."""
        return self.first.call(program)

    def _inputs_of(self, batch: Any) -> Inputs:
        args, kwargs = arguments_of(batch)
        return Inputs(args, {**self.inputs.kwargs, **kwargs})


def arguments_of(batch: Any) -> Arguments:
    """What a program is called with for one batch of a loader: a tuple, a dictionary or a value."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


def _gives_batches(program: Program, argument: Any, kwargs: Mapping[str, Any]) -> bool:
    if isinstance(argument, DataLoader):
        return True
    if isinstance(argument, Tensor | str | bytes | Mapping) or not isinstance(argument, Iterable):
        return False
    if isinstance(argument, Iterator):
        raise ValueError(
            f"the data come from a {type(argument).__name__}, which can be read only once, but "
            "are needed again: pass a DataLoader, or a list of tuples of arguments"
        )
    first = next(iter(argument), None)
    is_batch = isinstance(first, tuple | list) and bool(first) and isinstance(first[0], Tensor)
    return is_batch and not (
        _accepts(program, (argument,), kwargs) and not _accepts(program, first, kwargs)
    )


def _accepts(program: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    if isinstance(program, AutoGuide):
        program = model_of(program) or program
    try:
        signature_of(program).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


class _OwnRandomness:
    """A context with random states of its own, which start as those outside are.

    So that a loader that shuffles does not change what is drawn between its batches.
    """

    def __init__(self) -> None:
        self._other = pyro.util.get_rng_state()

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: Any) -> None:
        self._swap()

    def _swap(self) -> None:
        current = pyro.util.get_rng_state()
        pyro.util.set_rng_state(self._other)
        self._other = current
