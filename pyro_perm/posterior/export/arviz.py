"""A posterior in ArviZ, of either generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import ArrayLike, NDArray
from pyro.infer import MCMC
from torch import Tensor

from pyro_perm.first_call import as_symmetry
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.bounds.intervals import SymmetrizedELBO
from pyro_perm.posterior.export.assembly import assemble
from pyro_perm.posterior.export.attributes import bounds, source, statistics, versions
from pyro_perm.posterior.export.datasets import (
    Export,
    choose_export,
    evaluate,
    guide_posterior,
    mcmc_posterior,
    prior,
)
from pyro_perm.posterior.export.dims import Coords, Dims, constant_dims, default_dims, plate_dims
from pyro_perm.posterior.latents import log_prob_shapes, require_made_of_observations
from pyro_perm.posterior.whose_symmetry import symmetry_if_any
from pyro_perm.program.call import Call, refuse_shared_keywords
from pyro_perm.program.full_data import FullData, survey
from pyro_perm.program.restoration import restored
from pyro_perm.program.vectorized import Datasets, DrawMapper, Values
from pyro_perm.sampling import looking_on, set_up
from pyro_perm.symmetry import SymmetryGroup

Program = Callable[..., Any]
Arrays = dict[str, NDArray[Any]]


@refuse_shared_keywords
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

    The datasets are ``posterior`` (the model's latent sites, and sites that are functions of them,
    by ``pyro.deterministic`` or a reparametrization), ``posterior_predictive``, ``log_likelihood``
    (of each observation, without any scale), ``sample_stats``, ``prior``, ``prior_predictive``,
    ``observed_data`` and ``constant_data`` (the model's tensor arguments). ``sample_stats`` holds
    for each draw the log joint density ``lp``; for a guide also its log-density ``log_q``, which is
    ``log q^G``, as its estimator has it, for :class:`~pyro_perm.AutoSymmetrized`; for MCMC also
    ``diverging``. A scale that handlers give to all latent sites is divided out of both.

    Plates that subsample run over all of their data, in one subsample after the other, if the model
    looks its data up by their indices. One that never looks at them, as
    ``plate("data", size, subsample_size=len(x))``, was passed a batch: then that batch is the data,
    and counts for all rows of the plate in ``lp`` alone.

    Discrete latent sites that the guide leaves out are summed out, where they are marked with
    ``infer={"enumerate": "parallel"}``. A factor (``pyro.factor``) in a plate of data is part of
    ``log_likelihood``: of the observed site in the same plate, or by its own name. What has no
    place there is named in a warning.

    Dimensions are named where that is known: a plate's by the plate, hidden units' by their group,
    as ``{group}_unit``, in all sites that the group permutes. So
    ``data.posterior.isel(hidden_unit=3)`` is everything that belongs to one unit. Constants with as
    many rows as there are observations have the observations' dimension.

    The attributes name the versions, the seed, the guide and its estimator of ``log_q``, and hold
    the fields of ``elbo``. They survive ``to_netcdf``.

    :param model: the model. Where :func:`torch.func.vmap` can, it is vectorized over draws; it runs
        draw by draw elsewhere.
    :param guide: a guide that draws all of the model's latent sites but those that are summed out,
        such as ``AutoNormal`` or :class:`~pyro_perm.AutoSymmetrized`; or an
        :class:`~pyro.infer.MCMC` that has run.
    :param args: arguments of the model and the guide; ``kwargs`` likewise. What a model has in
        common with the keywords below is bound to it beforehand:
        ``functools.partial(model, seed=...)``.
    :param num_samples: number of draws of the guide; 1000 if None. MCMC brings its own.
    :param num_prior_samples: number of draws of the prior; 0 leaves both of its datasets out.
    :param symmetry: names the dimensions of hidden units; an
        :class:`~pyro_perm.AutoSymmetrized` brings its own.
    :param elbo: result of :func:`~pyro_perm.symmetrized_elbo`, for the attributes.
    :param dims: variable -> names of its dimensions but chain and draw, in place of those above;
        None stands for no name.
    :param coords: dimension -> coordinates along it, in place of ``0, 1, ...``.
    :param seed: of all draws; None draws one. It is among the attributes. Random states, buffers
        and modes are left as they were.
    :param draws_at_once: how many draws to vectorize over at once; 1 needs the least memory.
    :param progress: whether to show progress bars.
    :returns: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in ArviZ 1.x.
    :raises ValueError: if the guide or the MCMC leaves out a latent site of the model, if the guide
        has not run and nothing is observed, if a number of draws is out of range, or if ``dims`` or
        ``coords`` do not fit the sites.
    :raises TypeError: if an argument is of the wrong kind.
    """
    _require_count("num_prior_samples", num_prior_samples, 0)
    _require_count("draws_at_once", draws_at_once, 1)
    symmetry = as_symmetry(symmetry)
    if not isinstance(elbo, SymmetrizedELBO | None):
        raise TypeError(f"elbo must be what symmetrized_elbo returns, but is {elbo!r}")
    call = Call(model, args, kwargs)
    map_draws = DrawMapper(draws_at_once, progress)
    with torch.no_grad(), restored(model, guide, args, kwargs) as writes:
        seed = _seed(seed)
        pyro.set_rng_seed(seed)
        with writes:
            with log_prob_shapes(guide):
                program = survey(call)
            draw = _draws_of(guide, program, call, num_samples)
        drawn = draw(map_draws)
        with writes:
            export = choose_export(program, drawn["posterior"])
        datasets: dict[str, Values] = evaluate(export, drawn, map_draws)
        if num_prior_samples:
            datasets |= prior(export, num_prior_samples, map_draws)
        group = symmetry_if_any(guide, symmetry, call)
    arrays = {dataset: _to_numpy(values) for dataset, values in datasets.items()}
    arrays["observed_data"] = _to_numpy({n: program.sites[n].value for n in export.observed})
    arrays["constant_data"] = _constants(call, arrays["observed_data"])
    named, entries = _dims(export, arrays, group, dims or {})
    used = {name for each in named.values() for names in each.values() for name in names}
    return assemble(
        arrays,
        dims=named,
        coords={name: c for name, c in entries.items() if name in used} | dict(coords or {}),
        attributes={
            "/": {**versions(), "seed": seed, **source(guide), **bounds(group, elbo)},
            "sample_stats": statistics(guide),
        },
    )


def _draws_of(
    guide: Program | MCMC, model: FullData, call: Call, num_samples: int | None
) -> Callable[[DrawMapper], Datasets]:
    """The draws of the posterior, still to be made."""
    if isinstance(guide, MCMC):
        if num_samples is not None:
            raise ValueError("an MCMC brings its own draws: leave out num_samples=")
        return lambda _: mcmc_posterior(model, guide)
    if not callable(guide):
        raise TypeError(f"guide must be a guide or an MCMC, but is a {type(guide).__name__}")
    num_samples = 1000 if num_samples is None else num_samples
    _require_count("num_samples", num_samples, 1)
    guide_call = replace(call, program=guide)
    require_made_of_observations(guide, model)
    set_up(guide_call)
    with looking_on():
        program = survey(guide_call)
    return partial(guide_posterior, model, program, num_samples)


def _dims(
    export: Export,
    arrays: Mapping[str, Arrays],
    group: SymmetryGroup | None,
    given: Mapping[str, Sequence[str | None]],
) -> tuple[dict[str, Mapping[str, Sequence[str | None]]], Coords]:
    """Dataset -> variable -> dimensions, the given ones first; dimension -> coordinates."""
    sites = export.model.sites
    shown = {name: sites[name] for name in (*export.latent, *export.functions, *export.observed)}
    variables = {name for dataset in arrays.values() for name in dataset}
    of_sites, coords = default_dims(shown, group, variables)
    everywhere = {**of_sites, **given}
    observed, constants = arrays["observed_data"], arrays["constant_data"]
    unnamed: Dims = {name: [] for name in constants}
    of_constants = unnamed | constant_dims(constants, observed, everywhere)
    of_terms: Dims = {}
    for name, (term, *_) in export.pointwise.terms.items():
        plates = plate_dims(term.plates, variables)
        of_terms[name] = [plates.get(dim) for dim in range(-term.log_prob.dim(), 0)]
    return {
        "/": everywhere,
        "constant_data": {**of_constants, **given},
        "log_likelihood": {**of_terms, **given},
    }, coords


def _constants(call: Call, observed: Arrays) -> Arrays:
    """Tensor arguments of the model, by parameter name, other than the observations."""
    return {
        name: values
        for name, values in _to_numpy(call.tensors()).items()
        if not any(np.array_equal(values, data, equal_nan=True) for data in observed.values())
    }


def _seed(seed: int | None) -> int:
    if seed is None:
        return int(torch.randint(2**31, (), device="cpu"))
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int from 0 to 2**32 - 1, but is {seed!r}")
    return seed


def _require_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, but is {value!r}")


def _to_numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: np.asarray(tensor.detach().cpu()) for name, tensor in tensors.items()}
