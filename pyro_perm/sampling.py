"""Draws of a guide, and its density at them, many at once where ``vmap`` can."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from tqdm.auto import tqdm

from pyro_perm.density.base_guides import read_density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import Estimator
from pyro_perm.log_ratio import log_ratio_of
from pyro_perm.prior_reader import PriorReader
from pyro_perm.program.call import Call
from pyro_perm.program.full_data import Drawn, FullData
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.program.vectorized import Datasets, DrawMapper, Values
from pyro_perm.rescaled_draws import (
    add_scales,
    log_prior_change,
    sample_log_scales,
    unrescaled,
)
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.trace_sites import SymmetrizeMessenger

_PAIRS_AT_ONCE = 2**23


@dataclass(frozen=True)
class PosteriorDraws:
    """Independent draws of a guide.

    Attributes:
        values: site -> values, shape ``(num_draws, *site shape)``.
        log_q: the guide's log-density of each draw, in nats, shape ``(num_draws,)``.
    """

    values: dict[str, Tensor]
    log_q: Tensor


def set_up(guide: Call) -> None:
    """Let an autoguide that was never called set itself up."""
    program = guide.program
    if isinstance(program, AutoGuide) and program.prototype_trace is None:
        with poutine.block(), torch.no_grad():
            program(*guide.args, **guide.kwargs)


@contextmanager
def looking_on() -> Iterator[None]:
    """Run a guide for its sites alone: nobody asks for the density, or sees the random numbers."""
    with poutine.block(), poutine.mask(mask=False), fixed_seed(), torch.no_grad():
        yield


def draw_density(
    guide: Call, symmetry: SymmetryGroup, priors: PriorReader | None = None
) -> FactorizedDensity:
    """The density of a base guide, with one draw from it.

    :param priors: reads those of the sites that are rescaled; None to do without.
    """
    with poutine.block(), poutine.mask(mask=False), unrescaled(), SymmetrizeMessenger() as base:
        guide.program(*guide.args, **guide.kwargs)
    under = None if priors is None else priors(base.sites, guide.args, guide.kwargs)
    return read_density(base.sites, symmetry, under)


def draw_guide(
    guide: FullData, sites: Collection[str], num_draws: int, map_draws: DrawMapper
) -> PosteriorDraws:
    """Draw from any guide.

    :param sites: names of the sites that are asked for.
    """

    def draw(_: Values) -> Datasets:
        return _with_density(guide, sites, guide.draw())

    mapped = map_draws(draw, _indices(num_draws), description="posterior draws")
    return PosteriorDraws(mapped["values"], mapped["density"]["log_q"])


def draw_symmetrized(
    base: FullData,
    density: FactorizedDensity,
    estimator: Estimator,
    sites: Collection[str],
    num_draws: int,
    map_draws: DrawMapper,
    *,
    permute: bool,
) -> PosteriorDraws:
    """Draw from a symmetrized guide: draws of its base, their units permuted and rescaled.

    The estimators of ``log q^G`` decide by the numbers, which ``vmap`` forbids; they take batches.

    :param base: the base guide.
    :param density: of the base guide, at any draw; it must factorize, and priors must not depend on
        the draw.
    :param sites: names of the sites that are asked for.
    :param permute: whether units are permuted, and rescaled where the symmetry does so.
    """
    symmetry = density.symmetry

    def draw(_: Values) -> Datasets:
        with SymmetrizeMessenger() as traced:
            drawn = base.draw()
        symmetric = read_density(traced.sites, symmetry).values
        return {**_with_density(base, sites, drawn), "symmetric": symmetric}

    mapped = map_draws(draw, _indices(num_draws), description="posterior draws")
    log_ratio = _log_ratio(estimator, density, mapped["symmetric"], map_draws)
    log_q, values = mapped["density"]["log_q"], mapped["values"]
    if permute:
        device = next(iter(values.values())).device
        elements = symmetry.compact_part.sample((num_draws,), device=device)
        if density.priors is not None:
            drawn = replace(density, values=mapped["symmetric"], batch_shape=log_ratio.shape)
            log_scales = {g: sample_log_scales(drawn, g) for g in symmetry.open_groups}
            elements = add_scales(symmetry, elements, log_scales)
            log_ratio = log_ratio + log_prior_change(drawn, log_scales)
        values = symmetry.apply(elements, values)
    return PosteriorDraws(values, log_q + log_ratio.to(log_q))


def _with_density(guide: FullData, sites: Collection[str], drawn: Drawn) -> Datasets:
    return {
        "values": {name: drawn.values[name] for name in sites},
        "density": {"log_q": guide.log_joint(drawn.terms)},
    }


def _indices(num_draws: int) -> Values:
    return {"index": torch.arange(num_draws, device="cpu")}


def _log_ratio(
    estimator: Estimator, density: FactorizedDensity, values: Values, map_draws: DrawMapper
) -> Tensor:
    """``log q^G(w) - log q(w)`` of many draws from one density, shape ``(num_draws,)``."""
    num = len(next(iter(values.values())))
    pairs = sum(size**2 for size in density.symmetry.groups.values())
    at_once = min(map_draws.at_once, max(1, _PAIRS_AT_ONCE // pairs))
    parts = []
    with tqdm(total=num, desc="log q^G", leave=False, disable=not map_draws.progress) as bar:
        for start in range(0, num, at_once):
            part = {site: value[start : start + at_once] for site, value in values.items()}
            size = min(at_once, num - start)
            batch = replace(density, values=part, batch_shape=torch.Size([size]))
            parts.append(log_ratio_of(batch, estimator))
            bar.update(size)
    return torch.cat(parts)
