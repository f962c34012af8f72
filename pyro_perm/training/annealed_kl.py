"""Warm-up: the weight of the KL divergence, and of its correction, by a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro_perm.functional.latent_weight import LatentWeight
from pyro_perm.training.wrapped_elbo import WrappedELBO

Schedule = Callable[[int], float]


class AnnealedKL(WrappedELBO):
    r"""``E_q[log p(D | w)] - beta_t (KL(q || p) - I(g; w))`` at training step ``t``.

    A deep net under the whole KL divergence from the start tends to switch its units off before it
    has found what they are for. The weight is on all latent sites, the correction of a symmetrized
    guide included, so that both stay in proportion. Values reported without gradients have weight
    one: ``SVI.evaluate_loss``, and all bounds (Bowman et al. 2016; Sønderby et al. 2016).

    >>> import pyro_perm as pp
    >>> elbo = pp.AnnealedKL(pp.FunctionalSymmetrized_ELBO(), pp.linear_warm_up(2000))
    >>> elbo.schedule(500), elbo.schedule(5000)
    (0.25, 1.0)

    :param elbo: any ELBO of Pyro's kind that is not compiled.
    :param schedule: from the number of steps taken to the weight, such as :func:`linear_warm_up` or
        :func:`cyclical_warm_up`.
    :raises TypeError: if it wraps a compiled ELBO, or the schedule is no function.

    Attributes:
        step: number of steps taken.
    """

    def __init__(self, elbo: Any, schedule: Schedule) -> None:
        super().__init__(elbo)
        if not callable(schedule):
            raise TypeError(
                "the weight of the KL divergence is a schedule, a function of the step such as "
                f"linear_warm_up(1000), but is {schedule!r}: lambda step: {schedule!r} holds it"
            )
        self.schedule, self.step = schedule, 0

    @property
    def weight(self) -> float:
        """That of the next step.

        :raises ValueError: if the schedule gives a negative or no number.
        """
        weight = self.schedule(self.step)
        if not (math.isfinite(weight) and weight >= 0.0):
            raise ValueError(
                f"the weight of the KL divergence at step {self.step} is {weight}: a schedule must "
                "give numbers from zero on"
            )
        return weight

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """The weight of this step; the next one has the next."""
        with LatentWeight(self.weight):
            yield
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the state of the ELBO inside."""
        return {**super().state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.step = state["step"]


def linear_warm_up(num_steps: int, start: float = 0.0) -> Schedule:
    """From ``start`` to one in so many steps, and one from then on.

    :raises ValueError: if there are no steps.
    """
    _require_steps(num_steps)

    def weight(step: int) -> float:
        return start + (1.0 - start) * min(step / num_steps, 1.0)

    return weight


def cyclical_warm_up(period: int, num_cycles: int, rise: float = 0.5) -> Schedule:
    """A linear warm-up at the start of each of several cycles, and one after the last.

    Fu et al. (2019), "Cyclical annealing schedule".

    :param period: steps of a cycle.
    :param num_cycles: how many.
    :param rise: the share of a cycle in which the weight rises from zero to one.
    :raises ValueError: if there are no steps, or the share is not in ``(0, 1]``.
    """
    _require_steps(period)
    if not 0.0 < rise <= 1.0:
        raise ValueError(f"rise must be a share of the cycle in (0, 1], but is {rise}")

    def weight(step: int) -> float:
        within = step % period if step < period * num_cycles else period
        return min(within / (rise * period), 1.0)

    return weight


def _require_steps(num: int) -> None:
    if num < 1:
        raise ValueError(f"a warm-up needs a positive number of steps, but got {num}")
