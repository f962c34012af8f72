"""What the package uses of Pyro beyond its public interface, in one place.

``tests/program/test_pyro_internals.py`` says of each what it relies on.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.infer.autoguide.utils import deep_setattr as deep_setattr
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, transform_to

from pyro_perm.program.seeds import fixed_seed

UNCONSTRAINED = "_unconstrained"
"""Ends the names of parameters and of an ``AutoNormal``'s draws in unconstrained space."""


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


def returned_value(trace: Any) -> Any:
    """What the program returned in the run that a trace is of."""
    return trace.nodes["_RETURN"]["value"]


def is_deterministic(site: Any) -> bool:
    """Whether a site is a ``pyro.deterministic`` statement."""
    return bool(site["infer"].get("_deterministic"))


def has_all_values(site: Any) -> bool:
    """Whether a site has all of its values at once, on a dimension that ``poutine.enum`` added."""
    return site["infer"].get("_enumerate_dim") is not None


def packed_dims(tensor: Any) -> set[str]:
    """The symbols of a packed tensor's dimensions, as :mod:`pyro.ops.packed` has it."""
    return set(tensor._pyro_dims)


def cast_packed(tensor: Any, dtype: torch.dtype) -> Any:
    """A packed tensor in another precision: Pyro's contraction does not promote."""
    if tensor.dtype == dtype:
        return tensor
    converted: Any = tensor.to(dtype)
    converted._pyro_dims = tensor._pyro_dims
    return converted


def make_prototype(guide: AutoGuide, *args: Any, **kwargs: Any) -> None:
    """What a guide does at its first call: run its model, and make its parameters."""
    guide._setup_prototype(*args, **kwargs)


def make_prototype_from(guide: AutoGuide, model: Callable[..., Any]) -> None:
    """The same from a model in place of the guide's own, which is not run."""
    own = guide._model
    guide._model = (model,)
    try:
        with poutine.block(), fixed_seed(), torch.no_grad():
            guide._setup_prototype()
    finally:
        guide._model = own


def stored_parameters(module: PyroModule) -> dict[str, Tensor]:
    """What Pyro's param store holds under the names of a module's own parameters.

    :returns: name in the module -> unconstrained value. A constrained parameter takes such a value
        over at its next call.
    """
    if pyro.settings.get("module_local_params"):
        return {}
    stored = dict(pyro.get_param_store().named_parameters())
    names = {
        name: f"{module._pyro_name}.{name.removesuffix(UNCONSTRAINED)}"
        for name, _ in module.named_parameters()
    }
    return {name: stored[full] for name, full in names.items() if full in stored}


def named_owners(module: PyroModule) -> Iterator[tuple[str, Tensor, PyroModule]]:
    """Each parameter's name in Pyro's param store, its value, and the part that it belongs to.

    Parts of a module have names of their own: that of a wrapper need not come before them.
    """
    for part in module.modules():
        if isinstance(part, PyroModule):
            for name, value in part.named_parameters(recurse=False):
                full = name.removesuffix(UNCONSTRAINED)
                yield (f"{part._pyro_name}.{full}" if part._pyro_name else full), value, part


def current_parameters(module: PyroModule) -> dict[str, Tensor]:
    """The unconstrained parameters that a module's next call will use."""
    stored = stored_parameters(module)
    return {
        name: stored.get(name, own) if name.endswith(UNCONSTRAINED) else own
        for name, own in module.named_parameters()
    }


def name_apart(guide: AutoGuide, contents: Iterable[Tensor]) -> None:
    """Name the parameters of a guide by what it was made of.

    Guides of one class have the same names otherwise, and the second one the parameters of the
    first. What is made of the same has the same names in every process.
    """
    digest = 0
    for tensor in contents:
        digest = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), digest)
    guide._pyro_name = f"{guide._pyro_name}_{digest:08x}"


def share_prototype(guide: AutoGuide, base: AutoGuide) -> None:
    """Let a guide go by what another one saw in the model, in place of a prototype of its own."""
    guide.prototype_trace = base.prototype_trace
    guide._prototype_frames = base._prototype_frames


def draws_by_locs_and_scales(guide: AutoNormal) -> bool:
    """Whether the parameters in ``locs`` and ``scales`` say all of how a guide draws."""
    kind = type(guide)
    own = kind.forward, kind._get_loc_and_scale
    return own == (AutoNormal.forward, AutoNormal._get_loc_and_scale)


def announced_loc_and_scale(
    guide: AutoNormal, sites: Iterable[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The parameters of some sites, by the param statements that a call of the guide makes."""
    with guide._pyro_context:
        return {site: guide._get_loc_and_scale(site) for site in sites}


class UnconstrainedParameter(NamedTuple):
    """A parameter of a module that is kept in unconstrained space.

    Attributes:
        owner: the module that it is an attribute of.
        name: of the attribute that holds it.
        transform: from what it holds to the parameter.
    """

    owner: PyroModule
    name: str
    transform: Transform

    @classmethod
    def of(cls, module: PyroModule, path: str) -> UnconstrainedParameter:
        """The one at a dotted path."""
        *parents, name = path.split(".")
        owner = functools.reduce(getattr, parents, module)
        constraint, _ = owner._pyro_params[name]
        return cls(owner, f"{name}{UNCONSTRAINED}", transform_to(constraint))

    def constrained(self) -> Tensor:
        """The parameter, without a param statement."""
        value: Tensor = self.transform(self.owner._parameters[self.name])
        return value


def by_default(initial: Tensor) -> Tensor:
    """Mark an initial value as one that reparametrizations may replace, as those of Pyro's are."""
    initial._pyro_custom_init = False  # type: ignore[attr-defined]
    return initial


def has_run(mcmc: MCMC) -> bool:
    """Whether there are draws."""
    return mcmc._samples is not None
