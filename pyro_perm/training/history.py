"""What a training run leaves behind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(repr=False)
class History:
    """How a training run went; prints what came of it, and not the losses of all steps.

    >>> import pyro_perm as pp
    >>> pp.History(losses=[9.0, 5.0, 3.0], scores={3: 0.5}, best_step=3, stopped="finished")
    History(step=3, loss=3.0, best_step=3, best_score=0.5, stopped='finished')

    Attributes:
        losses: the loss at each step: minus an estimate of the ELBO of all data, in nats.
        learning_rates: of the optimizer's first group at each step; empty for Pyro's optimizers.
        scores: step -> validation score after it; steps count from one.
        epoch_ends: the last step of each finished epoch.
        best_step: the step whose parameters were kept, where there are scores.
        stopped: why the run ended: ``"finished"``, ``"patience"``, ``"callback"`` or
            ``"interrupted"``; empty while it runs.
    """

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    epoch_ends: list[int] = field(default_factory=list)
    best_step: int | None = None
    stopped: str = ""

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.losses)

    @property
    def best_score(self) -> float | None:
        """The validation score of the parameters that were kept."""
        return None if self.best_step is None else self.scores[self.best_step]

    def __repr__(self) -> str:
        loss = self.losses[-1] if self.losses else None
        return (
            f"History(step={self.step}, loss={loss}, best_step={self.best_step}, "
            f"best_score={self.best_score}, stopped={self.stopped!r})"
        )

    def smoothed_elbo(self, memory: float = 100.0) -> list[float]:
        """Minus the losses, averaged with weights that fall by ``1/e`` in so many steps, in nats.

        :param memory: a positive number of steps.
        """
        smoothed, total, weight = [], 0.0, 0.0
        for loss in self.losses:
            keep = 1.0 - 1.0 / max(memory, 1.0)
            total, weight = keep * total - loss, keep * weight + 1.0
            smoothed.append(total / weight)
        return smoothed

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)
