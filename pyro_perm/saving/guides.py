"""Guides in files, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.density.base_guides import constructions
from pyro_perm.density.base_guides.reader import Construction
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.program._pyro_internals import (
    UNCONSTRAINED,
    current_parameters,
    make_prototype_from,
    stored_parameters,
)
from pyro_perm.saving.estimators import describe_estimator, estimator_of
from pyro_perm.saving.file import read, write
from pyro_perm.saving.sites import describe_sites, model_of_sites
from pyro_perm.saving.supports import describe_support, support_of

_KIND = "guide"
_PARAMETER, _BUFFER = "parameter.", "buffer."


def save(guide: AutoGuide, path: str | PathLike[str]) -> None:
    """Write a guide into a file, whole or not at all, that :func:`load` reads.

    The file holds the parameters and buffers, such as those of :func:`laplace_approximation`, the
    symmetry, the estimator, and what the guide knows of its model. Of the model itself it holds
    nothing: save what is learned in there, as a ``torch.nn.Module``'s ``state_dict()``, beside it.

    >>> import pyro, tempfile, torch
    >>> from pathlib import Path
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model():
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([4]).to_event(1))
    ...     pyro.sample("y", pyro.distributions.Normal(w.tanh().sum(), 0.1), obs=torch.tensor(1.0))
    >>> guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    >>> draw = guide()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pp.save(guide, Path(folder) / "guide.safetensors")
    ...     loaded = pp.load(model, Path(folder) / "guide.safetensors")
    >>> torch.equal(loaded.median()["w"], guide.median()["w"])
    True

    :param guide: an :class:`AutoSymmetrized` or a plain ``AutoNormal``, ``AutoDiagonalNormal``,
        ``AutoMultivariateNormal`` or ``AutoLowRankMultivariateNormal`` that has run, or another
        guide whose reader says what it is made anew from.
    :param path: of the file: safetensors, with JSON in its metadata.
    :raises TypeError: if the guide is of another kind.
    :raises ValueError: if it has not run, or a site or its estimator cannot be written down.
    """
    base = guide.base if isinstance(guide, AutoSymmetrized) else guide
    construction = _construction_of(guide, base)
    if guide.prototype_trace is None or base.prototype_trace is None:
        raise ValueError("the guide has no parameters yet: call guide(*args), or train it, first")
    tensors: dict[str, Tensor] = {}
    document = {
        "guide": type(base).__name__,
        "options": {name: getattr(base, name) for name in construction.options},
        "constraints": {
            name: describe_support(getattr(base, name), name, tensors)
            for name in construction.constraints
        },
        "creates_plates": base.create_plates is not None,
        "sites": describe_sites(base.prototype_trace, tensors),
        "symmetrized": _describe_symmetrization(guide),
        "versions": {"torch": torch.__version__, "pyro": pyro.__version__},
    }
    tensors |= {_PARAMETER + name: value for name, value in current_parameters(base).items()}
    tensors |= {_BUFFER + name: value for name, value in _buffers_of(base).items()}
    write(path, _KIND, tensors, document)


def load(
    model: Callable[..., Any],
    path: str | PathLike[str],
    *,
    create_plates: Callable[..., Any] | None = None,
) -> AutoGuide:
    """The guide that :func:`save` wrote, ready to draw: its model is not run, nor data needed.

    Only what the file describes in words is made anew, from classes that are known here. It holds
    no code, and none is run. The guide is on the CPU: ``guide.to(device)`` moves it.

    :param model: the model of the guide, which it was trained for.
    :param path: of the file.
    :param create_plates: what ``AutoNormal`` was given; needed where it was given any.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged, of another program or of a newer version; if it
        needs ``create_plates`` or an estimator that is not there; if Pyro's param store holds
        other values under the names of the guide's parameters.
    """
    tensors, document = read(path, _KIND)
    try:
        return _guide(model, document, tensors, create_plates)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{path}' does not describe a guide as pp.save does ({type(error).__name__}: {error})"
        ) from error


def _guide(
    model: Callable[..., Any],
    document: Mapping[str, Any],
    tensors: dict[str, Tensor],
    create_plates: Callable[..., Any] | None,
) -> AutoGuide:
    if document["creates_plates"] and create_plates is None:
        raise ValueError(
            "the guide was given create_plates=, a function, which no file holds: pass it to "
            "pp.load"
        )
    parameters, buffers = _take(tensors, _PARAMETER), _take(tensors, _BUFFER)
    base = _base(model, document, tensors, parameters, buffers, create_plates)
    _require_own_parameters(base, parameters)
    symmetrized = document["symmetrized"]
    if symmetrized is None:
        return base
    return AutoSymmetrized.of_verified(
        base,
        PermutationSymmetry.from_json(json.dumps(symmetrized["symmetry"])).snapshot(),
        estimator=estimator_of(symmetrized["estimator"]),
        permute=symmetrized["permute"],
    )


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names start with a prefix, taken out, by the rest of their names."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _buffers_of(base: AutoGuide) -> dict[str, Tensor]:
    """The buffers that belong to its state."""
    state = base.state_dict()
    return {name: buffer for name, buffer in base.named_buffers() if name in state}


def _construction_of(guide: Any, base: Any) -> Construction:
    """What a base guide is made anew from.

    :raises TypeError: if no reader says it, or the guide is neither the base nor symmetrized.
    """
    found = constructions()
    construction = found.get(type(base))
    if construction is not None and type(guide) in (type(base), AutoSymmetrized):
        return construction
    *names, last = (kind.__name__ for kind in found)
    refused = base if construction is None else guide
    raise TypeError(
        f"pp.save writes {', '.join(names)} and {last}, plain or symmetrized, but this is a "
        f"{type(refused).__name__}: {_other_way(refused)}"
    )


def _other_way(guide: Any) -> str:
    """How to save a guide that :func:`save` does not write."""
    if not isinstance(guide, torch.nn.Module):
        return (
            "what it learns is in Pyro's param store, pyro.get_param_store().save(path), and back "
            "by pyro.get_param_store().load(path)"
        )
    return (
        "save its state_dict(), and call a new guide of the kind once before load_state_dict; or "
        "let the kinds of its reader have a Construction for it"
    )


def _kind_named(name: str) -> tuple[type[AutoGuide], Construction]:
    """The base guide of a name, and what it is made anew from.

    :raises ValueError: if no reader says it.
    """
    for kind, construction in constructions().items():
        if kind.__name__ == name:
            return kind, construction
    raise ValueError(
        f"no reader of base guides has a Construction for a {name}: list its reader before "
        "loading, or upgrade pyro_perm"
    )


def _describe_symmetrization(guide: AutoGuide) -> dict[str, Any] | None:
    if not isinstance(guide, AutoSymmetrized):
        return None
    assert guide.symmetry is not None
    return {
        "symmetry": json.loads(guide.symmetry.to_json()),
        "estimator": describe_estimator(guide.estimator),
        "permute": guide.permute,
    }


def _base(
    model: Callable[..., Any],
    document: Mapping[str, Any],
    tensors: dict[str, Tensor],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    create_plates: Callable[..., Any] | None,
) -> AutoGuide:
    make, construction = _kind_named(document["guide"])
    options = {name: document["options"][name] for name in construction.options}
    if construction.takes_plates:
        options["create_plates"] = create_plates
    base = make(model, **options)
    for name in construction.constraints:
        setattr(base, name, support_of(document["constraints"][name], tensors))
    make_prototype_from(base, model_of_sites(document["sites"], tensors))
    for name, buffer in buffers.items():
        _set_buffer(base, name, buffer)
    own = dict(base.named_parameters())
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in parameters.items()}:
        raise ValueError(
            f"the parameters {sorted(parameters)} are not those of a {document['guide']} for the "
            "sites that the file describes"
        )
    for name, parameter in own.items():
        parameter.data = parameters[name]
    return base


def _set_buffer(base: AutoGuide, name: str, value: Tensor) -> None:
    """Give a guide a buffer, in place of the parameter of its name if it was made with one.

    :raises ValueError: if it has neither, or of another shape.
    """
    known = {
        *_buffers_of(base),
        *(n.removesuffix(UNCONSTRAINED) for n, _ in base.named_parameters()),
    }
    *path, attribute = name.split(".")
    owner = base.get_submodule(".".join(path))
    if name not in known or getattr(owner, attribute).shape != value.shape:
        raise ValueError(
            f"the buffer '{name}' of shape {tuple(value.shape)} is none of a "
            f"{type(base).__name__} for the sites that the file describes"
        )
    delattr(owner, attribute)
    owner.register_buffer(attribute, value)


def _require_own_parameters(base: AutoGuide, parameters: Mapping[str, Tensor]) -> None:
    """Refuse to load what the first call would replace by what Pyro's param store holds."""
    for name, value in stored_parameters(base).items():
        if not torch.equal(value, parameters[name]):
            raise ValueError(
                f"Pyro's param store holds another value under the name of the guide's "
                f"'{name.removesuffix(UNCONSTRAINED)}', "
                "as another guide of this class leaves it, and the guide would take it over: call "
                "pyro.clear_param_store() before, or set "
                "pyro.settings.set(module_local_params=True)"
            )
