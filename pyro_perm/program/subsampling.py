"""Subsampled plates: one consecutive subsample after the other, and what they give, joined."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_perm.program.index_watch import IndexWatch


class Sweep(Messenger):
    """Gives subsampled plates their turns, and sites the values that are known.

    :param values: site -> value over all data.
    :param passed: plates whose indices the program does not look at.
    :param summed_out: sites that get no value.
    :param watch: tells after each pass whether plates are among those.
    """

    def __init__(
        self,
        values: dict[str, Tensor],
        passed: Collection[str] = (),
        summed_out: Collection[str] = (),
        watch: IndexWatch | None = None,
    ) -> None:
        super().__init__()
        self.subsamples: dict[str, Tensor] = {}
        self.passed = set(passed)
        self.watch = watch
        self._values = values
        self._summed_out = summed_out
        self._turns: dict[str, int] = {}
        self._last_turns: dict[str, int] = {}

    def turns(self) -> Iterator[None]:
        """Passes of the program, one for each combination of subsamples."""
        while True:
            self.subsamples = {}
            yield
            if not self.advance():
                return

    def settle(self) -> None:
        """Set plates apart whose indices nobody looked at."""
        if self.watch is not None:
            for plate in self.subsamples.keys() - self.watch.read:
                self.passed.add(plate)
                del self.subsamples[plate], self._turns[plate]

    def keep(self, name: str, value: Tensor) -> None:
        """Use a value in later passes too."""
        if name not in self._summed_out:
            self._values[name] = value

    def advance(self) -> bool:
        """Go to the next combination of subsamples, the innermost plate first.

        :returns: whether there is one.
        """
        for plate in reversed(list(self._turns)):
            if self._turns[plate] < self._last_turns[plate]:
                self._turns[plate] += 1
                return True
            del self._turns[plate]
        return False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is not None or msg["name"] in self._summed_out:
            return
        if site_is_subsample(msg):
            msg["value"] = self._next_subsample(msg["name"], msg["fn"])
        elif msg["name"] in self._values:
            value = self._values[msg["name"]]
            for frame in swept_frames(msg["cond_indep_stack"], self.subsamples):
                indices = self.subsamples[frame.name].to(value.device)
                value = value.index_select(frame.dim - msg["fn"].event_dim, indices)
            msg["value"] = value
        else:
            # Calling the distribution draws by in-place noise, which vmap refuses.
            msg["value"] = msg["fn"].sample()

    def _next_subsample(self, plate: str, fn: Any) -> Tensor | None:
        if fn.subsample_size is None or fn.subsample_size >= fn.size:
            return None
        if plate in self.passed:
            return torch.arange(fn.subsample_size, device=fn.device)
        turn = self._turns.setdefault(plate, 0)
        self._last_turns[plate] = (fn.size - 1) // fn.subsample_size
        # The last subsample overlaps with the one before it where the size is no multiple.
        start = min(turn * fn.subsample_size, fn.size - fn.subsample_size)
        indices = torch.arange(start, start + fn.subsample_size, device=fn.device)
        if self.watch is not None:
            self.watch.add(indices, plate)
        self.subsamples[plate] = indices
        return indices


def swept_frames(frames: Any, subsamples: Mapping[str, Tensor]) -> list[Any]:
    """The plates around a site, as dimensions of it, of which this pass has a part."""
    return [frame for frame in frames if frame.vectorized and frame.name in subsamples]


def placed(
    frames: Any,
    subsamples: Mapping[str, Tensor],
    before: Tensor | None,
    part: Tensor,
    event_dim: int = 0,
) -> Tensor:
    """The entries of one pass at their places among those of all data."""
    swept = swept_frames(frames, subsamples)
    if not swept:
        return part
    shape, places = list(part.shape), [torch.arange(n, device=part.device) for n in part.shape]
    for frame in swept:
        dim = frame.dim - event_dim
        shape[dim], places[dim] = frame.full_size, subsamples[frame.name].to(part.device)
    whole = part.new_zeros(shape) if before is None else before
    return whole.index_put(torch.meshgrid(*places, indexing="ij"), part)
