"""By which powers the entries of a unit are multiplied when it is rescaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Degrees:
    """Which entries of a unit are incoming, outgoing, or neither.

    Rescaling a unit by ``c > 0`` multiplies its incoming entries by ``c``, its outgoing ones by
    ``1 / c``, and leaves the others.

    Attributes:
        num_incoming: how many are multiplied by ``c``.
        num_outgoing: how many by ``1 / c``.
        num_fixed: how many by one.
        order: the entries in this order, shape ``(width,)``; None if they are.
    """

    num_incoming: int
    num_outgoing: int
    num_fixed: int
    order: Tensor | None = None

    @classmethod
    def of(cls, powers: Sequence[int]) -> Degrees:
        """From the power of each entry.

        :param powers: 1, -1 or 0 for each entry of a unit.
        :raises ValueError: for other powers, or where all are zero.
        """
        unknown = sorted({*powers} - {1, -1, 0})
        if unknown:
            raise ValueError(
                f"entries of degree {unknown[0]}: densities are integrated over scales of degrees "
                "1 and -1 only; leave scale= out of the axes of this group"
            )
        kinds = [[k for k, power in enumerate(powers) if power == kind] for kind in (1, -1, 0)]
        incoming, outgoing, fixed = map(len, kinds)
        if not incoming + outgoing:
            raise ValueError("no entry of the unit has a degree: rescaling does nothing to it")
        order = [k for kind in kinds for k in kind]
        in_order = order == sorted(order)
        return cls(
            incoming, outgoing, fixed, None if in_order else torch.tensor(order, device="cpu")
        )

    @property
    def jacobian(self) -> int:
        """``a``: rescaling by ``e^t`` multiplies volumes by ``e^{a t}``."""
        return self.num_incoming - self.num_outgoing

    def split(self, entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The incoming, outgoing and fixed entries.

        :param entries: shape ``(..., width)``.
        """
        if self.order is not None:
            entries = entries.index_select(-1, self.order.to(entries.device))
        incoming, outgoing, fixed = entries.split(
            (self.num_incoming, self.num_outgoing, self.num_fixed), -1
        )
        return incoming, outgoing, fixed

    def join(self, incoming: Tensor, outgoing: Tensor, fixed: Tensor) -> Tensor:
        """The transpose of :meth:`split`."""
        entries = torch.cat([incoming, outgoing, fixed], -1)
        if self.order is None:
            return entries
        return torch.empty_like(entries).index_copy_(-1, self.order.to(entries.device), entries)

    def balance(self, entries: Tensor) -> Tensor:
        """By which ``e^t`` to rescale units so that both ends are of one size.

        The rescaled units are the balanced representatives of their orbits, wherever on these the
        units were. For factors, give roots of second moments, ``sqrt(m^2 + s^2)``.

        :param entries: shape ``(..., n, width)``.
        :returns: ``t``, shape ``(..., n)``; zero where one end has no size.
        """
        incoming, outgoing, _ = self.split(entries)
        t = 0.5 * (_log_size(outgoing) - _log_size(incoming))
        return torch.where(t.isfinite(), t, 0.0)

    def rescale(self, entries: Tensor, log_scales: Tensor) -> Tensor:
        """Entries of units rescaled by ``e^t``.

        :param entries: shape ``(..., n, width)``.
        :param log_scales: ``t``, shape ``(..., n)``.
        """
        incoming, outgoing, fixed = self.split(entries)
        factor = log_scales.unsqueeze(-1).exp()
        return self.join(incoming * factor, outgoing / factor, fixed.expand_as(fixed * factor))


def _log_size(entries: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(entries, dim=-1)
    return size.log()
