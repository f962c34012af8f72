"""The log joint density of a trace, discrete latent sites summed out.

``sum_z p(z | w) p(x | z, w)`` does not split into a density of ``z`` and one of ``x``: sites whose
densities share a variable that is summed out have one term together. Every other site has a term
of its own.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_perm.program._pyro_internals import cast_packed, has_all_values, packed_dims


@dataclass(frozen=True)
class TracedTerm:
    """A part of a trace's log joint density.

    Attributes:
        sites: the sites whose density it is, but for those that are summed out.
        log_prob: shape ``(*batch)``, in nats, without scale and zero where masked out.
        scale: of handlers and subsampling, which multiplies it.
        frames: the plates that it lies in.
        summed_out: the sites that were summed out in it.
    """

    sites: tuple[str, ...]
    log_prob: Tensor
    scale: float | Tensor
    frames: tuple[Any, ...]
    summed_out: tuple[str, ...] = ()

    @property
    def total(self) -> Tensor:
        """Its entries, scaled, and added up."""
        total: Tensor = scale_and_mask(self.log_prob, scale=self.scale).sum()
        return total


def enumerate_sites(
    program: Callable[..., Any], sites: Collection[str], max_plate_nesting: int
) -> Callable[..., Any]:
    """The program with some of its discrete sites enumerated, and no others.

    :param sites: names of sites that are marked ``infer={"enumerate": "parallel"}``.
    :param max_plate_nesting: number of plate dimensions; enumeration takes those to their left.
    """
    if not sites:
        return program

    def mark(site: Any) -> Any:
        return {"enumerate": "parallel" if site["name"] in sites else None}

    marked = poutine.infer_config(program, mark)
    summing: Callable[..., Any] = poutine.enum(marked, first_available_dim=-1 - max_plate_nesting)
    return summing


def traced_terms(trace: Any) -> list[TracedTerm]:
    """The terms of a trace's log joint density, in the order of its sites.

    Log-probabilities that the trace holds already are used as they are.

    :raises ValueError: if sites cannot be summed out together: their scales differ, or they depend
        on each other across plates.
    """
    trace.compute_log_prob()
    nodes = {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    }
    if not any(map(has_all_values, nodes.values())):
        return [_alone(name, node) for name, node in nodes.items()]
    trace.pack_tensors()
    variables = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
    factors = {name: _factor(node) for name, node in nodes.items()}
    terms = []
    for names, shared in _components(factors, variables):
        if shared:
            terms.append(_contract(trace, {name: factors[name] for name in names}, shared))
        elif not has_all_values(nodes[names[0]]):  # A variable of one value has probability one.
            terms.append(_alone(names[0], nodes[names[0]]))
    return terms


def _alone(name: str, node: Any) -> TracedTerm:
    log_prob = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
    return TracedTerm((name,), log_prob, node["scale"], node["cond_indep_stack"])


def _factor(node: Any) -> Tensor:
    """The site's density, masked; not so a variable that is summed out, for its sum is one."""
    factor = node["packed"]["unscaled_log_prob"]
    mask = None if has_all_values(node) else node["packed"]["mask"]
    masked: Tensor = packed.scale_and_mask(factor, mask=mask)
    return masked


def _components(
    factors: dict[str, Tensor], variables: set[str]
) -> Iterator[tuple[list[str], set[str]]]:
    """Sites that share variables, directly or through others, and the variables."""
    pending = {name: variables & packed_dims(factor) for name, factor in factors.items()}
    while pending:
        first = next(iter(pending))
        names, shared = [first], pending.pop(first)
        grows = bool(shared)
        while grows:
            more = [name for name, own in pending.items() if own & shared]
            grows = bool(more)
            names += more
            shared = shared.union(*(pending.pop(name) for name in more))
        yield sorted(names, key=list(factors).index), shared


def _contract(trace: Any, factors: dict[str, Tensor], variables: set[str]) -> TracedTerm:
    nodes = {name: trace.nodes[name] for name in factors}
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    dtype = functools.reduce(torch.promote_types, (factor.dtype for factor in factors.values()))
    for name, factor in factors.items():
        plates = (f.name for f in nodes[name]["cond_indep_stack"] if f.vectorized)
        ordinal = frozenset(trace.plate_to_symbol[plate] for plate in plates)
        tree.setdefault(ordinal, []).append(cast_packed(factor, dtype))
    try:
        ((ordinal, (term,)),) = contract_tensor_tree(tree, variables).items()
    except NotImplementedError as error:
        raise ValueError(f"cannot sum out sites {sorted(factors)}: {error}") from error
    summed_out = tuple(name for name, node in nodes.items() if has_all_values(node))
    frames = tuple(
        frame
        for frame in next(iter(nodes.values()))["cond_indep_stack"]
        if not frame.vectorized or trace.plate_to_symbol[frame.name] in ordinal
    )
    return TracedTerm(
        sites=tuple(name for name in nodes if name not in summed_out),
        log_prob=_over_plates(packed.unpack(term, trace.symbol_to_dim), frames),
        scale=_common_scale(nodes),
        frames=frames,
        summed_out=summed_out,
    )


def _over_plates(log_prob: Tensor, frames: tuple[Any, ...]) -> Tensor:
    """With the dimensions of all plates: packing drops those of one entry."""
    sizes = {frame.dim: frame.size for frame in frames if frame.vectorized and frame.size > 0}
    shape = [sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)]
    return log_prob.expand(torch.broadcast_shapes(log_prob.shape, shape))


def _common_scale(nodes: dict[str, Any]) -> float | Tensor:
    """The scale that stands outside of a sum over variables, which must be that of all factors."""
    scales = {name: torch.as_tensor(node["scale"]) for name, node in nodes.items()}
    first = next(iter(scales.values()))
    if any(scale.dim() or scale != first for scale in scales.values()):
        raise ValueError(
            f"sites {', '.join(map(repr, scales))} are summed out together, but handlers or "
            "subsampled plates scale them by different numbers, so that no scale can stand outside "
            "of the sum: scale them alike, or put them into the same plate"
        )
    scale: float | Tensor = next(iter(nodes.values()))["scale"]
    return scale
