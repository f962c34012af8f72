"""Traces of a model: its latent sites, its plates, its enumeration, its predictions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from pyro_perm.program._pyro_internals import returned_value
from pyro_perm.program.call import Call
from pyro_perm.program.outputs import likelihood_of_output, output_name, tensors_among

Model = Callable[..., Any]


def prior_trace(model: Call) -> Any:
    """A trace of the model with every latent site drawn from its prior."""
    return poutine.trace(model.program).get_trace(*model.args, **model.kwargs)


def latent_sites(trace: Any) -> Iterator[tuple[str, Any]]:
    """The latent sites of a trace, without plates."""
    for name, site in trace.iter_stochastic_nodes():
        if not site_is_subsample(site):
            yield name, site


def observe_outputs(model: Model, trace: Any) -> Model:
    """The model, or if it observes nothing, the model with its outputs observed.

    A network without its likelihood, such as the ``net`` of TyXe's ``VariationalBNN``, is meant to
    return the same under the group, whatever its output will be compared with. Latent values among
    what a model returns are no outputs.

    :param trace: a trace of the model.
    """
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    if any(site["is_observed"] and not site_is_subsample(site) for site in sites):
        return model
    latent = {id(site["value"]) for site in sites}
    returned = tensors_among(returned_value(trace))
    outputs = [k for k, value in enumerate(returned) if id(value) not in latent]
    return functools.partial(_observe, model, outputs)


def _observe(model: Model, positions: Sequence[int], *args: Any, **kwargs: Any) -> None:
    returned = tensors_among(model(*args, **kwargs))
    for position in positions:
        likelihood, anything = likelihood_of_output(returned[position])
        pyro.sample(output_name(position), likelihood, obs=anything)


def is_enumerated(site: Any) -> bool:
    """Whether the model asks for a site to be summed out."""
    return bool(site["infer"].get("enumerate")) and site["fn"].has_enumerate_support


def plate_nesting(trace: Any) -> int:
    """The largest number of plate dimensions of any site."""
    return max(
        (
            -frame.dim
            for _, site in trace.nodes.items()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
            if frame.vectorized and frame.dim is not None
        ),
        default=0,
    )


def with_enumeration(model: Model, max_plate_nesting: int) -> Model:
    """The model with enumerated sites on dimensions to the left of all plates."""
    wrapped: Model = poutine.enum(model, first_available_dim=-1 - max_plate_nesting)
    return wrapped
