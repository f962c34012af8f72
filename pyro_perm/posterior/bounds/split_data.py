"""Plates whose rows come batch by batch, and sums over them.

What lies in such a plate is data, or local: it is summed over the batches, without the scale of
subsampling. All else is said again with every batch, and counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_perm.program.batches import Data
from pyro_perm.program.call import Program
from pyro_perm.program.full_data import FullData, Term
from pyro_perm.program.inputs import Inputs
from pyro_perm.program.sites import Site, SiteKind, sample_nodes
from pyro_perm.sampling import draw_density, looking_on
from pyro_perm.symmetry import SymmetryGroup

_FIX = "pass a loader of all batches in place of the tensors, such as a DataLoader"


@dataclass(frozen=True)
class Split:
    """The plates along which a loader splits the data; none without a loader.

    Attributes:
        plates: their names.
        sizes: number of rows of those that are larger than a batch.
        named: those whose rows the program names itself, as ``subsample=``.
    """

    plates: frozenset[str] = frozenset()
    sizes: Mapping[str, int] = field(default_factory=dict)
    named: frozenset[str] = frozenset()

    def covers(self, term: Term) -> bool:
        """Whether a term lies in one of these plates, and so has some of the rows only."""
        return not self.plates.isdisjoint(term.plates.values())

    def count(self) -> RowCount:
        """Count rows anew."""
        return RowCount(self)


def split_of(model: FullData, guide: FullData | None, data: Data) -> Split:
    """The plates along which the data of a model and its guide are split.

    They are those larger than a batch; or, for a model that takes whatever number of rows as all
    of its data, the plates as large as the batch around its observations.

    :raises ValueError: if a plate is larger than the data where there is no loader; if a loader's
        plate cannot be told, or a latent site of the model's lies in it that has no size to have
        all rows of; naming the plate and the fix.
    """
    partial = {**(guide.partial if guide else {}), **model.partial}
    if not data.is_split:
        for name, frame in partial.items():
            raise ValueError(
                f"plate '{name}' has {frame.full_size} rows, but the arguments are a batch of "
                f"{frame.size}, which alone says nothing of the others: {_FIX}"
            )
        return Split()
    for name, frame in partial.items():
        if not frame.vectorized:
            raise ValueError(
                f"plate '{name}' goes through its rows one by one, and a loader gives some of "
                "them: write it as a context, with pyro.plate(...)"
            )
    plates = frozenset(partial) or _plates_of_rows(model, guide or model, data.first)
    for name, site in model.sites.items():
        own = plates & set(site.plates.values())
        if len(own) > 1 and partial:
            raise ValueError(
                f"site '{name}' lies in the plates {', '.join(map(repr, sorted(own)))}, and a "
                "loader gives some rows of each, so that most pairs of rows never meet: let the "
                "batches have all rows of all but one of them"
            )
    sizes = {name: int(frame.full_size) for name, frame in partial.items()}
    return Split(plates, sizes, frozenset(partial) - model.passed)


def _plates_of_rows(model: FullData, guide: FullData, batch: Inputs) -> frozenset[str]:
    rows = next((len(t) for t, _ in batch.tensors() if t.dim()), None)

    def around(site: Site) -> set[str]:
        return {
            plate
            for dim, plate in site.plates.items()
            if site.value.shape[dim - site.event_dim] == rows
        }

    observed = model.names(SiteKind.OBSERVATION)
    plates = frozenset(plate for name in observed for plate in around(model.sites[name]))
    if not plates:
        raise ValueError(
            f"no plate of the model has the {rows} rows of the loader's first batch, so that it "
            "cannot be told what to add up over the batches: put the observations into a plate, "
            "pyro.plate('data', size, subsample_size=len(x))"
        )
    for name, plate in _local_sites(guide, plates):
        raise ValueError(
            f"the latent site '{name}' lies in plate '{plate}', which has as many rows as a batch "
            f"of the loader: say how many rows there are in all, pyro.plate('{plate}', size, "
            "subsample_size=len(x))"
        )
    return plates


def require_no_local_sites(model: FullData, split: Split) -> None:
    """Refuse latent sites that have a value for each row, where batches give some of the rows.

    :raises ValueError: naming the site and the plate.
    """
    for name, plate in _local_sites(model, split.plates):
        raise ValueError(
            f"the latent site '{name}' lies in plate '{plate}', of which a batch of the loader has "
            "some rows only: pass all rows at once"
        )


def _local_sites(drawn: FullData, plates: frozenset[str]) -> Iterator[tuple[str, str]]:
    for name in drawn.names(SiteKind.LATENT):
        for plate in plates & set(drawn.sites[name].plates.values()):
            yield name, plate


def require_one_density(guide: Program, data: Data, group: SymmetryGroup) -> None:
    """Refuse a guide whose symmetric sites have another density at another batch.

    :raises ValueError: naming the site.
    """
    if not data.is_split:
        return
    drawn = []
    for inputs in data.first_two:
        with looking_on():  # The same random numbers: the same draw, if the density is the same.
            drawn.append(draw_density(inputs.call(guide), group).values)
    for site, value in drawn[0].items():
        if not torch.equal(value, drawn[-1][site]):
            raise ValueError(
                f"the guide draws the symmetric site '{site}' from another density at the loader's "
                "second batch than at its first, so that there is no one q(w) for all data: let "
                "its parameters depend on no batch"
            )


class PerDraw:
    """A sum over batches at one draw.

    :param split: the plates whose rows the batches have between them.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self._totals: dict[tuple[str, ...], Tensor] = {}

    @property
    def total(self) -> Tensor | float:
        """The sum so far, in nats."""
        return sum(self._totals.values(), 0.0)

    def add(self, terms: Iterable[Term]) -> None:
        """Add what is of this batch alone, and keep the rest.

        :raises ValueError: if the rest is not what it was with the batches before.
        """
        for term in terms:
            key, value = term.sites + term.summed_out, term.scaled_log_prob.sum()
            before = self._totals.get(key)
            if before is None:
                self._totals[key] = value
            elif self._split.covers(term):
                self._totals[key] = before + value
            else:
                require_same(before, value, term, self._split)


def require_same(before: Tensor, value: Tensor, term: Term, split: Split) -> None:
    """Refuse a term of no batch's own that changes with the batch."""
    if not torch.isclose(before, value, rtol=1e-4, atol=1e-5, equal_nan=True):
        sites = ", ".join(map(repr, term.sites or term.summed_out))
        plates = ", ".join(map(repr, sorted(split.plates)))
        raise ValueError(
            f"the log-density of {sites} changes from {before:.6g} to {value:.6g} with the "
            f"loader's batch, but lies outside of the plate of its rows, {plates}: put it into "
            "that plate, or compute it from no batch"
        )


class RowCount:
    """Counts the rows of the split plates, batch by batch.

    :param split: the plates.
    """

    def __init__(self, split: Split) -> None:
        self._sizes = split.sizes
        self._counts = dict.fromkeys(split.sizes, 0)
        self._rows: dict[str, list[Tensor]] = {name: [] for name in split.named}

    def add(self, trace: Any) -> None:
        """Count those of a batch, from a trace of the model."""
        frames = {f.name: f for _, node in sample_nodes(trace) for f in node["cond_indep_stack"]}
        for name in self._sizes.keys() & frames.keys():
            self._counts[name] += int(frames[name].size)
        for name in self._rows.keys() & trace.nodes.keys():
            self._rows[name].append(torch.as_tensor(trace.nodes[name]["value"]).cpu())

    def require_all(self) -> None:
        """Refuse a loader that left rows out, or gave some of them twice.

        :raises ValueError: naming the plate, with the fix.
        """
        for name, size in self._sizes.items():
            found, what = self._counts[name], "rows in all"
            if found == size and self._rows.get(name):
                found, what = len(torch.cat(self._rows[name]).unique()), "different rows in all"
            if found != size:
                raise ValueError(
                    f"the loader's batches have {found} {what}, but plate '{name}' has {size}: "
                    "give each row once, without drop_last=True and without a sampler that leaves "
                    "rows out or repeats them"
                )
