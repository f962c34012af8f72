"""Sample sites of a program: what each is for, and what its statement says of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_perm.program._pyro_internals import is_deterministic
from pyro_perm.program.trace import is_enumerated


class SiteKind(Enum):
    """What a sample statement is for."""

    LATENT = "drawn by the program"
    AUXILIARY = "drawn by the program, of a guide's own"
    OBSERVATION = "data"
    FUNCTION = "a function of other sites: pyro.deterministic, or what a reparametrization leaves"
    FACTOR = "a term of the log joint density, by pyro.factor"


@dataclass(frozen=True)
class Site:
    """A sample site over all data.

    Attributes:
        kind: what it is for.
        value: of one run, shape ``(*batch, *event)``.
        event_dim: number of event dimensions.
        plates: dimension of the batch, counted from the right -> name of its plate.
        support: of its distribution; None if it has none that is known.
        scale: of handlers such as ``poutine.scale``, without that of subsampling.
        can_be_summed_out: whether it is marked for enumeration, all of its values at once.
    """

    kind: SiteKind
    value: Tensor
    event_dim: int
    plates: Mapping[int, str]
    support: Any
    scale: float | Tensor
    can_be_summed_out: bool


def sample_nodes(trace: Any) -> Iterator[tuple[str, Any]]:
    """The sample sites of a trace, without the subsamples of its plates."""
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not site_is_subsample(node):
            yield name, node


def site_of(node: Any, value: Tensor) -> Site:
    """What a traced node says of a site, whose value over all data is known."""
    frames = node["cond_indep_stack"]
    return Site(
        kind=_kind(node),
        value=value,
        event_dim=node["fn"].event_dim,
        plates=plates_of(frames),
        support=_support(node["fn"]),
        scale=scale_without(node["scale"], frames, {frame.name for frame in frames}),
        can_be_summed_out=is_enumerated(node) and node["infer"].get("num_samples") is None,
    )


def _support(fn: Any) -> Any:
    try:
        return fn.support
    except NotImplementedError:
        return None


def _kind(node: Any) -> SiteKind:
    if not node["is_observed"]:
        return SiteKind.AUXILIARY if node["infer"].get("is_auxiliary") else SiteKind.LATENT
    if site_is_factor(node):
        return SiteKind.FACTOR
    return SiteKind.FUNCTION if _is_function(node) else SiteKind.OBSERVATION


def _is_function(node: Any) -> bool:
    """Whether an observed site has the one value that it can have.

    Reparametrizations, as ``pyro.deterministic``, observe it from a Delta where it is.
    """
    fn, value = node["fn"], node["value"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if not isinstance(fn, Delta):
        return False
    return is_deterministic(node) or torch.equal(*torch.broadcast_tensors(fn.v, value))


def scale_without(scale: Any, frames: Any, plates: Collection[str]) -> Any:
    """The scale without that of some subsampled plates."""
    for frame in frames:
        if frame.name in plates and frame.size > 0:
            scale = scale * frame.size / frame.full_size
    return scale


def plates_of(frames: Any) -> dict[int, str]:
    """Dimension of the batch, counted from the right -> name of its plate."""
    return {frame.dim: frame.name for frame in frames if frame.vectorized and frame.size > 0}
