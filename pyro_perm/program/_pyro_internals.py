"""What the package uses of Pyro beyond its public interface, in one place.

``tests/program/test_pyro_internals.py`` says of each what it relies on.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.infer.autoguide.utils import deep_setattr as deep_setattr
from pyro.nn import PyroModule
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor


def outer_handler(model: Callable[..., Any]) -> tuple[Messenger, Callable[..., Any]] | None:
    """The outermost handler of a model, and the model without it.

    Pyro hides a handled function in a partial application, one inside of another or not.
    """
    if not isinstance(model, functools.partial):
        return None
    wrapper = model.func if isinstance(model.func, functools.partial) else model
    if len(wrapper.args) < 2 or not isinstance(wrapper.args[0], Messenger):
        return None
    return wrapper.args[0], wrapper.args[1]


@contextmanager
def own_calls(modules: Iterator[PyroModule]) -> Iterator[None]:
    """Let modules draw their sites anew at each call, also while they are being called.

    A :class:`~pyro.nn.PyroModule` keeps what it drew until the outermost call of its tree returns:
    a guide that shares the tree with its model would see each site once.
    """
    contexts = {id(module._pyro_context): module._pyro_context for module in modules}.values()
    before = [dict(vars(context)) for context in contexts]
    for context in contexts:
        context.active, context.cache = 0, {}
    try:
        yield
    finally:
        for context, state in zip(contexts, before, strict=True):
            vars(context).update(state)


def packed_dims(tensor: Any) -> set[str]:
    """The symbols of a packed tensor's dimensions, as :mod:`pyro.ops.packed` has it."""
    return set(tensor._pyro_dims)


def packed_as(tensor: Any, dtype: torch.dtype) -> Any:
    """A packed tensor in another precision: Pyro's contraction does not promote."""
    if tensor.dtype == dtype:
        return tensor
    converted: Any = tensor.to(dtype)
    converted._pyro_dims = tensor._pyro_dims
    return converted


def make_prototype(guide: AutoGuide, *args: Any, **kwargs: Any) -> None:
    """What a guide does at its first call: run its model, and make its parameters."""
    guide._setup_prototype(*args, **kwargs)


def name_apart(guide: AutoGuide, contents: Iterable[Tensor]) -> None:
    """Name the parameters of a guide by what it was made of.

    Guides of one class have the same names otherwise, and the second one the parameters of the
    first. What is made of the same has the same names in every process.
    """
    digest = 0
    for tensor in contents:
        digest = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), digest)
    guide._pyro_name = f"{guide._pyro_name}_{digest:08x}"


def plates_of(guide: AutoGuide) -> dict[str, CondIndepStackFrame]:
    """The plates that a guide saw in its model when it was set up."""
    frames: dict[str, CondIndepStackFrame] = guide._prototype_frames
    return frames


def loc_and_scale(guide: AutoNormal, site: str) -> tuple[Tensor, Tensor]:
    """The parameters of a site, in unconstrained space."""
    loc, scale = guide._get_loc_and_scale(site)
    return loc, scale


def by_default(initial: Tensor) -> Tensor:
    """Mark an initial value as one that reparametrizations may replace, as those of Pyro's are."""
    initial._pyro_custom_init = False  # type: ignore[attr-defined]
    return initial


def has_run(mcmc: MCMC) -> bool:
    """Whether there are draws."""
    return mcmc._samples is not None
