"""A trained guide's posterior in ArviZ, of either generation.

``InferenceData`` in ArviZ 0.x, an xarray ``DataTree`` in 1.x, with the same groups and variables.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor
from tqdm.auto import trange

from pyro_perm._version import __version__
from pyro_perm.guide import AutoSymmetrized

Program = Callable[..., Any]
Group = dict[str, NDArray[Any]]


class Draw(NamedTuple):
    """One draw from the posterior, and what the model says about it.

    Attributes:
        posterior: latent site of the model -> value.
        posterior_predictive: observed site -> a new observation.
        log_likelihood: observed site -> log-density of each observation, in nats.
        sample_stats: ``lp``, the log joint density, and ``log_q``, that of the guide, in nats.
    """

    posterior: dict[str, Tensor]
    posterior_predictive: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    sample_stats: dict[str, Tensor]


def to_arviz(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    progress: bool = True,
    **kwargs: Any,
) -> Any:
    """Draw from a trained guide into ArviZ's format.

    >>> from pyro.infer.autoguide import AutoNormal
    >>> def model(y):
    ...     mu = pyro.sample("mu", pyro.distributions.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", pyro.distributions.Normal(mu, 1.0), obs=y)
    >>> data = to_arviz(model, AutoNormal(model), torch.zeros(5), num_samples=20, progress=False)
    >>> data["log_likelihood"]["y"].shape
    (1, 20, 5)

    What to do with it::

        az.loo(data)
        az.summary(data, kind="stats")  # the draws are independent: no R-hat
        data.to_netcdf("posterior.nc")

    The groups are ``posterior`` (the model's latent sites), ``posterior_predictive``,
    ``log_likelihood`` (without the scale of subsampling), ``sample_stats``, ``observed_data`` and
    ``constant_data`` (the model's tensor arguments). ``sample_stats`` holds for each draw the log
    joint density ``lp`` and the guide's log-density ``log_q``: ``log q^G``, as its estimator has
    it, for :class:`~pyro_perm.AutoSymmetrized`. Plates that subsample run over all of their data.

    :param model: the model; it runs one draw at a time, so need not be vectorizable.
    :param guide: a guide that draws all of the model's latent sites, such as ``AutoNormal`` or
        :class:`~pyro_perm.AutoSymmetrized`.
    :param args: arguments of the model and the guide; ``kwargs`` likewise.
    :param num_samples: number of draws.
    :param progress: whether to show a progress bar.
    :returns: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in ArviZ 1.x.
    :raises ValueError: if the guide leaves out a latent site of the model.
    """
    steps = trange(num_samples, desc="posterior draws", disable=not progress)
    with torch.no_grad(), _full_data():
        draws = [_draw(model, guide, args, kwargs) for _ in steps]
        observed = _observed(poutine.trace(model).get_trace(*args, **kwargs))
    groups = {group: _stack([getattr(draw, group) for draw in draws]) for group in Draw._fields}
    groups["observed_data"] = _to_numpy(observed)
    groups["constant_data"] = _to_numpy(_constants(model, args, kwargs, observed))
    return assemble(groups, _attributes(guide))


def assemble(
    groups: Mapping[str, Mapping[str, NDArray[Any]]], attributes: Mapping[str, Mapping[str, Any]]
) -> Any:
    """Build ArviZ's object from plain arrays.

    :param groups: group -> variable -> array; shape ``(chain, draw, ...)`` but in the groups of
        data. Empty groups are left out.
    :param attributes: group, or ``"/"`` for the whole -> attributes.
    :returns: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in ArviZ 1.x.
    """
    # Importing pyro_perm shall not take the seconds that ArviZ takes.
    import arviz

    from_dict: Callable[..., Any] = arviz.from_dict  # Its signature is that of one generation.
    groups = {group: dict(variables) for group, variables in groups.items() if variables}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return from_dict(groups, attrs=attributes)
    own = {f"{group}_attrs": dict(attributes[group]) for group in groups if group in attributes}
    return from_dict(**groups, attrs=dict(attributes.get("/", {})), **own)


def _draw(model: Program, guide: Program, args: Any, kwargs: Any) -> Draw:
    guide_trace: Any = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    trace: Any = poutine.trace(replayed).get_trace(*args, **kwargs)
    predicted: Any = poutine.trace(poutine.uncondition(replayed)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    observed = _observed(trace)
    return Draw(
        _latent(trace, guide_trace),
        {name: predicted.nodes[name]["value"] for name in observed},
        {name: _log_likelihood(trace.nodes[name]) for name in observed},
        {
            "lp": torch.as_tensor(trace.log_prob_sum()),
            "log_q": torch.as_tensor(guide_trace.log_prob_sum()),
        },
    )


def _latent(trace: Any, guide_trace: Any) -> dict[str, Tensor]:
    pruned: Any = prune_subsample_sites(trace)
    latent = {
        name: site["value"]
        for name, site in pruned.iter_stochastic_nodes()
        if not site["infer"].get("is_auxiliary")
    }
    missing = [name for name in latent if name not in guide_trace]
    if missing:
        raise ValueError(
            f"the guide draws no {', '.join(map(repr, missing))}, so these latent sites of the "
            "model have no posterior; marginalize them, or add them to the guide"
        )
    return latent


def _observed(trace: Any) -> dict[str, Tensor]:
    """The observed sites, without factors and deterministic functions."""
    return {
        name: trace.nodes[name]["value"]
        for name in trace.observation_nodes
        if not site_is_factor(trace.nodes[name])
        and not trace.nodes[name]["infer"].get("_deterministic")
    }


def _log_likelihood(site: Any) -> Tensor:
    """Log-density of each observation, without scale, and zero where masked out."""
    log_likelihood: Tensor = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
    return log_likelihood


def _constants(
    model: Program, args: Any, kwargs: Any, observed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensor arguments of the model, by parameter name, other than the observations."""
    program = model.forward if isinstance(model, torch.nn.Module) else model
    arguments = inspect.signature(program).bind(*args, **kwargs).arguments
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor)
        and not any(torch.equal(value, observation) for observation in observed.values())
    }


def _attributes(guide: Program) -> dict[str, dict[str, str]]:
    estimator = "none: the guide is not symmetrized"
    if isinstance(guide, AutoSymmetrized):
        estimator = repr(guide.estimator)
    versions = {
        "inference_library": "pyro_perm",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "seed": str(torch.initial_seed()),
        "guide": type(guide).__name__,
        "estimator": estimator,
    }
    return {"/": versions, "sample_stats": {"log_q_estimator": estimator}}


def _stack(draws: list[dict[str, Tensor]]) -> Group:
    """One chain of draws: shape ``(1, draws, *shape)``."""
    return _to_numpy({name: torch.stack([d[name] for d in draws])[None] for name in draws[0]})


def _to_numpy(tensors: Mapping[str, Tensor]) -> Group:
    return {name: np.asarray(tensor.detach().cpu()) for name, tensor in tensors.items()}


@contextmanager
def _full_data() -> Iterator[None]:
    """Run plates that would draw a subsample over all of their data."""
    subsample = SubsampleMessenger._subsample

    def full(
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        indices: Any = None,
        *device: Any,
    ) -> Any:
        return subsample(name, size, None if indices is None else subsample_size, indices, *device)

    # A handler cannot do it: the plate insists on the size of the subsample that it was given.
    with mock.patch.object(SubsampleMessenger, "_subsample", staticmethod(full)):
        yield
