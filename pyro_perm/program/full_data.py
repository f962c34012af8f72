"""Run a Pyro program over all of its data, also where it subsamples.

A subsampled plate takes only as many indices as the program asked for, so one run cannot see all of
them. The program runs once for each of the plate's consecutive subsamples instead, for each
combination of them where several plates subsample, and the runs are joined.

That is so where the program looks its data up by the plate's indices. Where it never looks at
them, as in ``plate("data", N, subsample_size=len(x))``, it was passed the batch itself: then that
batch is the data, and the plate only scales what the batch says to ``N`` rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Categorical

from pyro_perm.program._torch_internals import tree_leaves
from pyro_perm.program.call import Call
from pyro_perm.program.index_watch import IndexWatch
from pyro_perm.program.sites import (
    Site,
    SiteKind,
    plates_of,
    sample_nodes,
    scale_without,
    site_of,
)
from pyro_perm.program.subsampling import Sweep, placed, swept_frames
from pyro_perm.program.summed_out import TracedTerm, enumerate_sites, traced_terms
from pyro_perm.symmetry.axis import broadcast_shapes

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Term:
    """A part of the log joint density over all data.

    Attributes:
        sites: the sites whose density it is, but for those that were summed out.
        log_prob: log-density of each entry of the batch, without scale and zero where masked out,
            shape ``(*batch)``, in nats.
        scaled_log_prob: the same with the scale of handlers such as ``poutine.scale``, and with
            that of subsampling where a batch is the data.
        plates: dimension of the batch, counted from the right -> name of its plate.
        summed_out: the sites that were summed out in it.
    """

    sites: tuple[str, ...]
    log_prob: Tensor
    scaled_log_prob: Tensor
    plates: Mapping[int, str]
    summed_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """One run of a program over all of its data.

    Attributes:
        values: of all sites, shape ``(*batch, *event)``.
        means: of the distributions of the sites that have one in closed form, same shape; of
            categorical ones the probabilities, shape ``(*batch, classes)``.
        terms: of the log joint density, a single site each.
    """

    values: dict[str, Tensor]
    means: dict[str, Tensor]
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class FullData:
    """A program, and what a run of it has shown: see :func:`survey`.

    Attributes:
        call: the program, and what it is called with.
        sites: its sample sites, in order.
        looked_up: the subsampled plates whose indices it looks at.
        passed: those whose indices it does not look at, so that a batch was passed to it.
        max_plate_nesting: number of its plate dimensions.
        partial: frames of the plates of which it has some of the rows, be they passed or chosen by
            the program itself, as ``subsample=``.
        split: plates of which other calls have the rest, so that their scale does not count.
    """

    call: Call
    sites: Mapping[str, Site]
    looked_up: frozenset[str]
    passed: frozenset[str]
    max_plate_nesting: int
    partial: Mapping[str, Any] = field(default_factory=dict)
    split: frozenset[str] = frozenset()

    def names(self, *kinds: SiteKind) -> list[str]:
        """Names of the sites of some kinds, in order."""
        return [name for name, site in self.sites.items() if site.kind in kinds]

    def log_joint(self, terms: Iterable[Term]) -> Tensor:
        """Log-density of all terms together, in nats.

        A scale that handlers give to all latent sites alike is another unit, and is divided out: a
        loss per observation, ``poutine.scale(model, scale=1 / N)``. A subsampled plate counts a
        batch that is the data for as many rows as the plate has.
        """
        total = sum(term.scaled_log_prob.sum() for term in terms)
        return torch.as_tensor(total if self._unit == 1 else total / self._unit)

    @cached_property
    def _unit(self) -> float:
        kinds = SiteKind.LATENT, SiteKind.AUXILIARY
        scales = [
            torch.as_tensor(self.sites[name].scale, device="cpu") for name in self.names(*kinds)
        ]
        if not scales or any(scale.numel() > 1 for scale in scales):
            return 1.0
        first, *others = map(float, scales)
        alike = first > 0 and all(math.isclose(first, other, rel_tol=1e-9) for other in others)
        return first if alike and not math.isclose(first, 1.0, rel_tol=1e-9) else 1.0

    @property
    def without_observations(self) -> FullData:
        """The same program with its observations drawn anew."""
        return replace(
            self, call=replace(self.call, program=poutine.uncondition(self.call.program))
        )

    def draw(self, values: Values | None = None) -> Drawn:
        """Draw all sites but those whose values are known.

        Indices that the program gives to a plate itself, as ``subsample=``, stay what they are.

        :param values: values of sites that shall not be drawn, over all data.
        """
        sweep = Sweep(dict(values or {}), self.passed)
        drawn: dict[str, Tensor] = {}
        means: dict[str, Tensor] = {}
        joint = Joint(self.split)
        for trace in _passes(self.call, sweep, sweep(self.call.program)):
            joint.add(traced_terms(trace), sweep.subsamples)
            for name, node in sample_nodes(trace):
                place = partial(placed, node["cond_indep_stack"], sweep.subsamples)
                event_dim = node["fn"].event_dim
                drawn[name] = place(drawn.get(name), _value(node), event_dim)
                mean = _mean(node["fn"])
                if mean is not None:
                    rank = mean.dim() - len(node["fn"].batch_shape)
                    means[name] = place(means.get(name), mean, rank)
        return Drawn(drawn, means, joint.terms)

    def evaluate(self, values: Values, summed_out: Collection[str] = ()) -> EvaluatedSites:
        """The log joint density at known values of the latent sites.

        :param values: of the latent sites, over all data.
        :param summed_out: latent sites that are summed out instead.
        :raises ValueError: if they cannot be summed out together, or another one has no value.
        """
        sweep = Sweep(dict(values), self.passed, summed_out)
        program = enumerate_sites(sweep(self.call.program), summed_out, self.max_plate_nesting)
        functions: dict[str, Tensor] = {}
        joint = Joint(self.split)
        for trace in _passes(self.call, sweep, program):
            _require_values(trace, values, summed_out)
            joint.add(traced_terms(trace), sweep.subsamples)
            for name in self.names(SiteKind.FUNCTION):
                if name in trace.nodes:
                    node = trace.nodes[name]
                    functions[name] = placed(
                        node["cond_indep_stack"],
                        sweep.subsamples,
                        functions.get(name),
                        _value(node),
                        node["fn"].event_dim,
                    )
        return EvaluatedSites(joint.terms, functions)


@dataclass(frozen=True)
class EvaluatedSites:
    """What a program says about known values of its latent sites.

    Attributes:
        terms: of the log joint density.
        functions: values of the sites that are functions of others; those of summed-out variables
            have more entries than in :attr:`FullData.sites`.
    """

    terms: tuple[Term, ...]
    functions: dict[str, Tensor]


def survey(call: Call) -> FullData:
    """Run a program over all of its data once, and note what it is made of.

    :raises ValueError: if it cannot be told whether a batch was passed to it, or looked up.
    """
    return _survey_passes(call, None)


def glance(call: Call) -> FullData:
    """The same from its first subsample alone, so that values are not those of all data."""
    return _survey_passes(call, 1)


def _survey_passes(call: Call, num_passes: int | None) -> FullData:
    watch = IndexWatch()
    sweep = Sweep({}, watch=watch)
    sites: dict[str, Site] = {}
    partial: dict[str, Any] = {}
    nesting = 0
    for trace in islice(_passes(call, sweep, sweep(call.program)), num_passes):
        for name, node in sample_nodes(trace):
            frames = node["cond_indep_stack"]
            _require_looked_up(call, name, node, sweep.subsamples)
            partial |= {f.name: f for f in frames if _is_partial(f, sweep.subsamples)}
            nesting = max([nesting, *(-frame.dim for frame in frames if frame.vectorized)])
            before = sites[name].value if name in sites else None
            value = placed(frames, sweep.subsamples, before, _value(node), node["fn"].event_dim)
            sites[name] = site_of(node, value)
    return FullData(call, sites, frozenset(watch.read), frozenset(sweep.passed), nesting, partial)


def _is_partial(frame: Any, subsamples: Mapping[str, Tensor]) -> bool:
    return frame.name not in subsamples and 0 < frame.size < frame.full_size


def _passes(call: Call, sweep: Sweep, program: Callable[..., Any]) -> Iterator[Any]:
    """Traces of the program, one for each combination of subsamples."""
    for _ in sweep.turns():
        with sweep.watch or nullcontext():
            trace: Any = poutine.trace(program).get_trace(*call.args, **call.kwargs)
        sweep.settle()
        yield trace
        for name, node in sample_nodes(trace):
            if not swept_frames(node["cond_indep_stack"], sweep.subsamples):
                sweep.keep(name, node["value"])


class Joint:
    """Terms of several passes, joined.

    :param split: plates of which each call has a part, and other calls the rest: their scale does
        not count.
    """

    def __init__(self, split: Collection[str] = ()) -> None:
        self._split = split
        self._terms: dict[tuple[str, ...], Term] = {}

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms, in the order in which they came."""
        return tuple(self._terms.values())

    def add(self, terms: Iterable[TracedTerm], subsamples: Mapping[str, Tensor]) -> None:
        """Put the terms of one pass into their places.

        :param subsamples: plate -> the indices that the pass has of it.
        """
        for term in terms:
            key = term.sites + term.summed_out
            before = self._terms.get(key)
            place = partial(placed, term.frames, subsamples)
            scale = scale_without(term.scale, term.frames, {*subsamples, *self._split})
            scaled = scale_and_mask(term.log_prob, scale=scale)
            self._terms[key] = Term(
                sites=term.sites,
                log_prob=place(before.log_prob if before else None, term.log_prob),
                scaled_log_prob=place(before.scaled_log_prob if before else None, scaled),
                plates=plates_of(term.frames),
                summed_out=term.summed_out,
            )


def _require_looked_up(call: Call, name: str, node: Any, subsamples: Mapping[str, Tensor]) -> None:
    """Refuse observations that were passed as they are, where other rows are looked up."""
    if not any(node["value"] is leaf for leaf in tree_leaves((call.args, call.kwargs))):
        return
    batch = node["value"].shape[: node["value"].dim() - node["fn"].event_dim]
    for frame in swept_frames(node["cond_indep_stack"], subsamples):
        if len(batch) >= -frame.dim and batch[frame.dim] == frame.size:
            raise ValueError(
                f"site '{name}' observes an argument as it was passed, in {frame.size} rows, but "
                f"the program looks something up by the indices of plate '{frame.name}', which "
                f"chooses {frame.size} of {frame.full_size} rows itself: index the observations by "
                f"them too, or pass the rows of the batch, pyro.plate('{frame.name}', "
                f"{frame.full_size}, subsample=rows)"
            )


def _require_values(trace: Any, values: Values, summed_out: Collection[str]) -> None:
    for name, node in sample_nodes(trace):
        if not (node["is_observed"] or name in values or name in summed_out):
            raise ValueError(
                f"there is no value for the latent site '{name}' of the model, which did not "
                "occur in an earlier run"
            )


def _value(node: Any) -> Tensor:
    value: Tensor = node["value"]
    return value.expand(broadcast_shapes([value.shape, node["fn"].shape()]))


def _mean(fn: Any) -> Tensor | None:
    try:
        mean: Tensor = fn.probs if isinstance(fn, Categorical) else fn.mean
    except (AttributeError, NotImplementedError):
        return None
    return mean
