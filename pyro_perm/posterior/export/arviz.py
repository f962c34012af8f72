"""A posterior in ArviZ, of either generation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pyro import poutine
from pyro.infer import MCMC
from torch import Tensor

from pyro_perm.first_call import as_symmetry
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.bounds.intervals import SymmetrizedELBO
from pyro_perm.posterior.export.assembly import assemble
from pyro_perm.posterior.export.attributes import bounds, source, statistics, versions
from pyro_perm.posterior.export.dims import constant_dims, default_dims
from pyro_perm.posterior.export.draws import (
    Call,
    evaluate,
    guide_posterior,
    mcmc_posterior,
    prior,
    symmetrized_posterior,
)
from pyro_perm.program.full_data import Site, run
from pyro_perm.program.vectorized import DrawMapper, Groups
from pyro_perm.symmetry import SymmetryGroup

Program = Callable[..., Any]
Arrays = dict[str, NDArray[Any]]


def to_arviz(
    model: Program,
    guide: Program | MCMC,
    *args: Any,
    num_samples: int | None = None,
    num_prior_samples: int = 500,
    symmetry: PermutationSymmetry | None = None,
    elbo: SymmetrizedELBO | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    coords: Mapping[str, ArrayLike] | None = None,
    seed: int | None = None,
    draws_at_once: int = 64,
    progress: bool = True,
    **kwargs: Any,
) -> Any:
    """Draw from a trained guide, or take the draws of MCMC, into ArviZ's format.

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model(y):
    ...     mu = pyro.sample("mu", pyro.distributions.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", pyro.distributions.Normal(mu, 1.0), obs=y)
    >>> y = torch.zeros(5)
    >>> data = pp.to_arviz(model, AutoNormal(model), y, num_samples=20, progress=False)
    >>> data["log_likelihood"]["y"].shape
    (1, 20, 5)

    The draws are independent, so there is no R-hat:

    >>> import arviz as az
    >>> list(az.summary(data, kind="stats").index)
    ['mu']

    The draws of MCMC come with their chains kept apart:

    >>> from pyro.infer import MCMC, NUTS
    >>> mcmc = MCMC(NUTS(model), num_samples=4, warmup_steps=4, disable_progbar=True)
    >>> mcmc.run(y)
    >>> pp.to_arviz(model, mcmc, y, progress=False)["posterior"]["mu"].dims
    ('chain', 'draw')

    The groups are ``posterior`` (the model's latent sites), ``posterior_predictive``,
    ``log_likelihood`` (of each observation, without any scale), ``sample_stats``, ``prior``,
    ``prior_predictive``, ``observed_data`` and ``constant_data`` (the model's tensor arguments).
    ``sample_stats`` holds for each draw the log joint density ``lp``; for a guide also its
    log-density ``log_q``, which is ``log q^G``, as its estimator has it, for
    :class:`~pyro_perm.AutoSymmetrized`; for MCMC also ``diverging``. Plates that subsample run
    over all of their data, in one subsample after the other.

    Dimensions are named where that is known: a plate's by the plate, hidden units' by their group,
    as ``{group}_unit``, in all sites that the group permutes. So
    ``data.posterior.isel(hidden_unit=3)`` is everything that belongs to one unit. Constants with as
    many rows as there are observations have the observations' dimension.

    The attributes name the versions, the seed, the guide and its estimator of ``log_q``, and hold
    the fields of ``elbo``. They survive ``to_netcdf``.

    :param model: the model. Where :func:`torch.func.vmap` can, it is vectorized over draws; it runs
        draw by draw elsewhere.
    :param guide: a guide that draws all of the model's latent sites, such as ``AutoNormal`` or
        :class:`~pyro_perm.AutoSymmetrized`; or an :class:`~pyro.infer.MCMC` that has run.
    :param args: arguments of the model and the guide; ``kwargs`` likewise.
    :param num_samples: number of draws of the guide; 1000 if None. MCMC brings its own.
    :param num_prior_samples: number of draws of the prior; 0 leaves both of its groups out.
    :param symmetry: names the dimensions of hidden units; an
        :class:`~pyro_perm.AutoSymmetrized` brings its own.
    :param elbo: result of :func:`~pyro_perm.symmetrized_elbo`, for the attributes.
    :param dims: variable -> names of its dimensions but chain and draw, in place of those above;
        None stands for no name.
    :param coords: dimension -> coordinates along it, in place of ``0, 1, ...``.
    :param seed: of all draws; None draws one. It is among the attributes, and the generators are
        left as they were.
    :param draws_at_once: how many draws to vectorize over at once; 1 needs the least memory.
    :param progress: whether to show progress bars.
    :returns: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in ArviZ 1.x.
    :raises ValueError: if the guide or the MCMC leaves out a latent site of the model, if a number
        of draws is out of range, or if ``dims`` or ``coords`` do not fit the sites.
    :raises TypeError: if an argument is of the wrong kind.
    """
    _require_count("num_prior_samples", num_prior_samples, 0)
    _require_count("draws_at_once", draws_at_once, 1)
    seed = _seed(seed)
    symmetry = as_symmetry(symmetry)
    if not isinstance(elbo, SymmetrizedELBO | None):
        raise TypeError(f"elbo must be what symmetrized_elbo returns, but is {elbo!r}")
    call = Call(model, args, kwargs)
    map_draws = DrawMapper(draws_at_once, progress)
    with torch.no_grad(), poutine.seed(rng_seed=seed):
        sites = run(model, args, kwargs)
        drawn = _posterior(call, guide, sites, num_samples, map_draws)
        draws = evaluate(call, sites, drawn, map_draws)
        if num_prior_samples:
            draws |= prior(call, sites, num_prior_samples, map_draws)
        group = _symmetry(call, guide, symmetry)
    groups = {name: _to_numpy(values) for name, values in draws.items()}
    observed = {name: site.value for name, site in sites.items() if site.is_observation}
    groups["observed_data"] = _to_numpy(observed)
    groups["constant_data"] = _constants(call, groups["observed_data"])
    shown = {n: site for n, site in sites.items() if site.is_latent or site.is_observation}
    site_dims, site_coords = default_dims(shown, group)
    named = {**site_dims, **(dims or {})}
    named = {**constant_dims(groups["constant_data"], groups["observed_data"], named), **named}
    used = {name for names in named.values() for name in names}
    return assemble(
        groups,
        dims=named,
        coords={name: c for name, c in site_coords.items() if name in used} | dict(coords or {}),
        attributes={
            "/": {**versions(), "seed": seed, **source(guide), **bounds(group, elbo)},
            "sample_stats": statistics(guide),
        },
    )


def _posterior(
    call: Call,
    guide: Program | MCMC,
    sites: Mapping[str, Site],
    num_samples: int | None,
    map_draws: DrawMapper,
) -> Groups:
    if isinstance(guide, MCMC):
        if num_samples is not None:
            raise ValueError("an MCMC brings its own draws: leave out num_samples=")
        return mcmc_posterior(guide, sites)
    if not callable(guide):
        raise TypeError(f"guide must be a guide or an MCMC, but is a {type(guide).__name__}")
    num_samples = 1000 if num_samples is None else num_samples
    _require_count("num_samples", num_samples, 1)
    if isinstance(guide, AutoSymmetrized):
        return symmetrized_posterior(call, guide, sites, num_samples, map_draws)
    return guide_posterior(call, guide, sites, num_samples, map_draws)


def _symmetry(
    call: Call, guide: Program | MCMC, symmetry: PermutationSymmetry | None
) -> SymmetryGroup | None:
    """The group that the guide or the caller brings."""
    if not isinstance(guide, AutoSymmetrized):
        if symmetry is not None:
            symmetry.verify(call.model, *call.args, **call.kwargs)
        return None if symmetry is None else symmetry.group
    assert guide.symmetry is not None
    if symmetry is not None and symmetry != guide.symmetry:
        raise ValueError("the guide brings its own symmetry: leave out symmetry=")
    return guide.symmetry.group


def _constants(call: Call, observed: Arrays) -> Arrays:
    """Tensor arguments of the model, by parameter name, other than the observations."""
    program = call.model.forward if isinstance(call.model, torch.nn.Module) else call.model
    signature = inspect.signature(program)
    arguments: dict[str, Any] = {}
    for name, value in signature.bind(*call.args, **call.kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            arguments |= {f"{name}_{i}": entry for i, entry in enumerate(value)}
        else:
            arguments |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    return {
        name: values
        for name, values in _to_numpy(tensors).items()
        if not any(np.array_equal(values, data, equal_nan=True) for data in observed.values())
    }


def _seed(seed: int | None) -> int:
    if seed is None:
        return int(torch.randint(2**31, ()))
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int from 0 to 2**32 - 1, but is {seed!r}")
    return seed


def _require_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, but is {value!r}")


def _to_numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: np.asarray(tensor.detach().cpu()) for name, tensor in tensors.items()}
