"""A program and its arguments, and keywords that it shares with a function it is passed to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyro_perm.program._pyro_internals import outer_handler
from pyro_perm.symmetry.suggestions import suggestion

Program = Callable[..., Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call:
    """A model or a guide, and what it is called with.

    Attributes:
        program: the model or the guide.
        args: its arguments; ``kwargs`` likewise.
    """

    program: Program
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """The arguments that are tensors, by the program's names of them."""
        signature = signature_of(self.program)
        arguments: dict[str, Any] = {}
        for name, value in signature.bind(*self.args, **self.kwargs).arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                arguments |= {f"{name}_{i}": entry for i, entry in enumerate(value)}
            else:
                arguments |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def signature_of(program: Program) -> inspect.Signature:
    """The parameters that a program's own code names, through the handlers around it."""
    while True:
        if isinstance(program, nn.Module):
            return inspect.signature(program.forward)
        if isinstance(program, functools.partial) and isinstance(program.func, nn.Module):
            bound = functools.partial(program.func.forward, *program.args, **program.keywords)
            return inspect.signature(bound)
        handled = outer_handler(program)
        if handled is None:
            return inspect.signature(program)
        _, program = handled


def model_of(guide: AutoGuide) -> Program | None:
    """The model of an autoguide; None after copying or pickling, when Pyro drops it."""
    try:
        model: Program = guide.model
    except TypeError:
        return None
    return model


def refuse_shared_keywords(function: _Function) -> _Function:
    """Refuse keywords that the function takes for itself, but its program has too.

    The function's first argument is the program, or a guide of it, and its ``*args`` and
    ``**kwargs`` are passed on. A guide in the place of a model is refused, and keywords that
    neither of the two takes are named.
    """
    parameters = inspect.signature(function).parameters.values()
    own = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        program = args[0] if args else kwargs.get(positional[0])
        if positional[0] == "model" and isinstance(program, AutoGuide):
            raise TypeError(
                f"{function.__name__} is given an {type(program).__name__}, a guide, as its model: "
                f"give {', '.join(positional)} in this order"
            )
        shared = sorted(own & kwargs.keys() & _unbound_names(program, args[len(positional) :]))
        if shared:
            raise ValueError(
                f"{function.__name__} and the program both have a parameter "
                f"{', '.join(map(repr, shared))}, and only one of them would get it: bind the "
                f"program's, functools.partial(program, {shared[0]}=...), in model and guide, and "
                f"pass {shared[0]}= for {function.__name__}"
            )
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            # Not before the call, for a program may take more than its signature says.
            taken = own | set(positional)
            unknown = [n for n in kwargs.keys() - taken if not _takes_keyword(program, n)]
            if not unknown:
                raise
            name = min(unknown)
            raise TypeError(
                f"neither {function.__name__} nor the program has a keyword '{name}'"
                + _advice_on_keyword(name, own | _unbound_names(program, ()))
            ) from error

    return cast(_Function, checked)


def _advice_on_keyword(name: str, known: set[str]) -> str:
    if name == "seed":
        return ": call pyro.set_rng_seed(seed) before"
    return suggestion(name, sorted(known)) or f": there are {sorted(known)}"


def _takes_keyword(program: Any, name: str) -> bool:
    if isinstance(program, AutoGuide):
        program = model_of(program) or program
    try:
        parameters = signature_of(program).parameters
    except (TypeError, ValueError):  # It has no signature.
        return True
    return name in parameters or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _unbound_names(program: Any, args: tuple[Any, ...]) -> set[str]:
    """Names of the parameters that a program would still take by keyword."""
    if isinstance(program, AutoGuide):
        program = model_of(program) or program
    try:
        signature = signature_of(program)
        given = signature.bind_partial(*args).arguments.keys()
    except (TypeError, ValueError):  # It has no signature, or will refuse the arguments itself.
        return set()
    return set(signature.parameters) - given - _bound_names(program)


def _bound_names(program: Any) -> set[str]:
    """Names of the parameters that ``functools.partial`` has bound."""
    names: set[str] = set()
    while isinstance(program, functools.partial):
        names |= program.keywords.keys()
        handled = outer_handler(program)
        program = program.func if handled is None else handled[1]
    return names
