"""Reads the priors of rescaled sites off a model, for the guide's density.

Priors that are the same at every call are read once. Those that depend on other latent sites, as
on a layer's scale, or on what is learned, are read at every draw, which runs the model once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from pyro_perm.density.moved_delta import as_drawn
from pyro_perm.density.priors import Priors, elementwise, rescaled_sites
from pyro_perm.program.isolation import isolation, without_autoguide_handlers
from pyro_perm.program.trace import prior_trace
from pyro_perm.symmetry import SymmetryGroup

Model = Callable[..., Any]


class PriorReader:
    """Priors of the sites that a symmetry rescales.

    :param model: the model.
    :param symmetry: the group.
    :param args: arguments of the model; ``kwargs`` likewise.

    Attributes:
        sites: names of the sites that are rescaled.
    """

    def __init__(self, model: Model, symmetry: SymmetryGroup, args: Any, kwargs: Any) -> None:
        self._begin(model, symmetry)
        self._read(args, kwargs)

    @classmethod
    def at_first_call(cls, model: Model, symmetry: SymmetryGroup) -> PriorReader:
        """The same with the arguments of its first call, before which the model is not run."""
        reader = cls.__new__(cls)
        reader._begin(model, symmetry)
        return reader

    def _begin(self, model: Model, symmetry: SymmetryGroup) -> None:
        self._model: Model | None = model
        self.sites = {s for g in symmetry.open_groups for s in rescaled_sites(symmetry, g)}
        self._constant: Priors | None = None
        self._has_read = False

    def _read(self, args: Any, kwargs: Any) -> None:
        model, self._has_read = self._model, True
        if self.sites and model is not None:
            # As an autoguide has it, the model would draw its sites at their initial values.
            drawn = without_autoguide_handlers(model)
            with isolation(model) as writes, writes, torch.enable_grad():
                one, other = (prior_trace(drawn, args, kwargs).nodes for _ in range(2))
            if all(_is_constant(one[site], other[site]) for site in self.sites):
                self._constant = priors_of(one, self.sites)

    @property
    def are_constant(self) -> bool:
        """Whether they are the same at every call, or there are none."""
        return self._constant is not None or not self.sites

    def __getstate__(self) -> dict[str, Any]:
        # As of autoguides: a copy does without the model.
        return {**self.__dict__, "_model": None}

    def __call__(self, drawn: Mapping[str, Any], args: Any, kwargs: Any) -> Priors | None:
        """The priors, given what a guide drew.

        :param drawn: trace nodes of the guide.
        :returns: None where no site is rescaled.
        :raises ValueError: if they are not the same at every call and there is no model.
        """
        if not self.sites:
            return None
        if not self._has_read:
            self._read(args, kwargs)
        if self._constant is not None:
            return self._constant
        if self._model is None:
            raise ValueError(
                f"the priors of the sites {sorted(self.sites)} depend on other sites or "
                "parameters, and the guide has lost its model, which Pyro drops when a guide is "
                "copied or pickled: make the guide anew, with the same parameters"
            )
        values = {
            name: as_drawn(node["fn"]) if isinstance(node["fn"], Delta) else node["value"]
            for name, node in drawn.items()
            if node["type"] == "sample"
        }
        with poutine.block(), poutine.seed(rng_seed=0):
            trace = poutine.trace(_Given(values)(self._model)).get_trace(*args, **kwargs)
        return priors_of(trace.nodes, self.sites)


def priors_of(nodes: Mapping[str, Any], sites: set[str]) -> Priors:
    """The priors of some sites in a trace of the model."""
    return Priors({site: elementwise(nodes[site]["fn"]) for site in sites})


class _Given(Messenger):
    """Gives sites the values that a guide drew."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._values and not msg["is_observed"]:
            msg["value"], msg["done"] = self._values[msg["name"]], True


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
