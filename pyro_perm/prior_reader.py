"""Reads the priors of rescaled sites off a model, for the guide's density.

Priors that are the same at every call are read once. Those that depend on other latent sites, as
on a layer's scale, or on what is learned, are read at every draw, which runs the model once more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution

from pyro_perm.density.moved_delta import as_drawn
from pyro_perm.density.rescaled_priors import Priors, elementwise, rescaled_sites
from pyro_perm.program._torch_internals import tree_leaves, tree_map
from pyro_perm.program.call import Call
from pyro_perm.program.given_values import GivenValues
from pyro_perm.program.isolation import isolation, without_autoguide_handlers
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.program.trace import latent_sites, prior_trace
from pyro_perm.symmetry import SymmetryGroup

Model = Callable[..., Any]


class PriorReader:
    """Priors of the sites that a symmetry rescales.

    They count as constant where two runs of the model have the same ones, which depend neither on
    anything that is learned nor on tensors of real numbers among the arguments, until a number
    among these changes.

    :param model: the model; it does not run before priors are asked for.
    :param symmetry: the group.

    Attributes:
        sites: names of the sites that are rescaled, in the order of the symmetry. Densities are
            added up in it: that of a set of names would be another one in each process.
    """

    def __init__(self, model: Model, symmetry: SymmetryGroup) -> None:
        self._model: Model | None = model
        rescaled = (s for g in symmetry.open_groups for s in rescaled_sites(symmetry, g))
        self.sites = tuple(dict.fromkeys(rescaled))
        self._constant: Priors | None = None
        self._numbers: list[Any] | None = None

    @property
    def are_constant(self) -> bool:
        """Whether they were the same at every call so far, or there are none."""
        return self._constant is not None or not self.sites

    def __getstate__(self) -> dict[str, Any]:
        # As of autoguides: a copy does without the model.
        return {**self.__dict__, "_model": None}

    def __call__(self, drawn: Mapping[str, Any], args: Any, kwargs: Any) -> Priors | None:
        """The priors, given what a guide drew.

        :param drawn: trace nodes of the guide.
        :returns: None where no site is rescaled.
        :raises ValueError: if they are not the same at every call, and there is no model or the
            guide leaves out a latent site.
        """
        if not self.sites:
            return None
        numbers = _numbers_among(args, kwargs)
        if self._model is not None and self._numbers != numbers:
            self._constant, self._numbers = self._read_constant(args, kwargs), numbers
        if self._constant is not None and self._numbers == numbers:
            return self._constant
        return self._read_at(drawn, args, kwargs)

    def _read_constant(self, args: Any, kwargs: Any) -> Priors | None:
        assert self._model is not None
        # As an autoguide has it, the model would draw its sites at their initial values.
        model = Call(without_autoguide_handlers(self._model), args, kwargs)
        with isolation(model.program) as writes, writes, torch.enable_grad():
            one = prior_trace(model).nodes
            other = _trace_with_graph(model)
        if all(_is_constant(one[site], other[site]) for site in self.sites):
            return priors_of(one, self.sites)
        return None

    def _read_at(self, drawn: Mapping[str, Any], args: Any, kwargs: Any) -> Priors:
        if self._model is None:
            raise ValueError(
                f"the priors of the sites {sorted(self.sites)} depend on other sites, parameters "
                "or arguments, and the guide has lost its model, which Pyro drops when a guide is "
                "copied or pickled: make the guide anew, with the same parameters"
            )
        values = {
            name: as_drawn(node["fn"]) if isinstance(node["fn"], Delta) else node["value"]
            for name, node in drawn.items()
            if node["type"] == "sample"
        }
        with poutine.block(), fixed_seed():
            trace = poutine.trace(GivenValues(values)(self._model)).get_trace(*args, **kwargs)
        latent = [name for name, _ in latent_sites(trace)]
        # What comes later, as observations that are to be predicted, has no say in a prior.
        last = max(latent.index(site) for site in self.sites)
        left_out = [name for name in latent[:last] if name not in values]
        if left_out:
            raise ValueError(
                f"the priors of the sites {sorted(self.sites)} depend on other sites, and site "
                f"'{left_out[0]}' is left out of the guide: let it draw all latent sites, or find "
                "the symmetry without scales"
            )
        return priors_of(trace.nodes, self.sites)


def priors_of(nodes: Mapping[str, Any], sites: Sequence[str]) -> Priors:
    """The priors of some sites in a trace of the model."""
    return Priors({site: elementwise(nodes[site]["fn"]) for site in sites})


def _trace_with_graph(model: Call) -> Mapping[str, Any]:
    """Trace nodes of a model whose arguments autograd follows, where the model lets it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Another run warned of what concerns the user.
        try:
            args, kwargs = tree_map(_follow, (model.args, model.kwargs))
            trace = prior_trace(replace(model, args=args, kwargs=kwargs))
        except RuntimeError:  # As of NumPy, which takes no tensor with a graph.
            trace = prior_trace(model)
    nodes: Mapping[str, Any] = trace.nodes
    return nodes


def _follow(leaf: Any) -> Any:
    """A tensor of real numbers as a copy that has a graph; anything else as it is."""
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.detach().requires_grad_().clone()
    return leaf


def _is_constant(one: Any, other: Any) -> bool:
    """Whether a prior is the same in two traces, and has nothing to learn."""
    value = one["value"].detach()
    probes = (value, 0.5 * value - 1)
    priors: list[Distribution] = [elementwise(node["fn"]) for node in (one, other)]
    for probe in probes:
        with torch.enable_grad():  # The first call may be an evaluation.
            first, second = (prior.log_prob(probe) for prior in priors)
        if first.requires_grad or second.requires_grad or not torch.equal(first, second):
            return False
    return True


def _numbers_among(args: Any, kwargs: Any) -> list[Any]:
    """The arguments that are numbers: the likely ones to set a prior."""
    leaves = tree_leaves((args, kwargs))
    each = (leaf.item() if isinstance(leaf, Tensor) and not leaf.dim() else leaf for leaf in leaves)
    return [leaf for leaf in each if isinstance(leaf, bool | int | float | str)]
