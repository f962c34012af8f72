"""The loop of :func:`pyro_perm.fit`: steps, validation, checkpoints, and ways to end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_perm.training.batches import arguments_of_batch
from pyro_perm.training.checkpoint import RandomState, read_checkpoint, write_checkpoint
from pyro_perm.training.history import History
from pyro_perm.training.parameters import TrainedTensors
from pyro_perm.training.processes import Processes, start_epoch
from pyro_perm.training.steps import Steps

Callback = Callable[[History], bool | None]
_STEPS_BETWEEN_DISPLAYS = 20


@dataclass(frozen=True)
class Plan:
    """When a run does what.

    Attributes:
        epochs: how many; None goes by steps.
        steps: how many; None goes by epochs.
        validate: the score of the parameters as they are, larger being better.
        validate_every: steps from one validation to the next; None validates after each epoch.
        patience: validations without a better score that end the run.
        callbacks: called after each step; the run ends where one returns True.
        checkpoint: where the run is saved and found again.
        checkpoint_every: steps from one checkpoint to the next.
        processes: those that share the run, of which the first one saves it.
        progress: whether to show a bar.
    """

    epochs: int | None
    steps: int | None
    validate: Callable[[], float] | None
    validate_every: int | None
    patience: int | None
    callbacks: Sequence[Callback]
    checkpoint: Path | None
    checkpoint_every: int
    processes: Processes
    progress: bool

    def is_over(self, history: History) -> bool:
        """Whether all steps or epochs are done."""
        if self.steps is not None:
            return history.step >= self.steps
        assert self.epochs is not None
        return len(history.epoch_ends) >= self.epochs


class Run:
    """One training run.

    :param plan: when it does what.
    :param batches: the batches of an epoch, each time it is iterated over.
    :param steps: takes the steps.
    :param tensors: what they change.
    :param extras: name -> what else has a state to be saved, such as a schedule in the loss.
    """

    def __init__(
        self,
        plan: Plan,
        batches: Iterable[Any],
        steps: Steps,
        tensors: TrainedTensors,
        extras: dict[str, Any],
    ) -> None:
        self._plan, self._batches, self._steps = plan, batches, steps
        self._tensors, self._extras = tensors, extras
        self._random = RandomState(batches)
        self._at_epoch_start = self._random.get()
        self._best: dict[str, Tensor] | None = None
        self.history = History()

    def resume(self) -> None:
        """Go on where the checkpoint is, if there is one.

        :raises ValueError: if it is of another run.
        """
        path = self._plan.checkpoint
        if path is None or not path.exists():
            return
        state = read_checkpoint(path)
        self._tensors.restore(state["tensors"])
        self._steps.load_state_dict(state["steps"])
        self.history.load_state_dict(state["history"])
        for name, extra in self._extras.items():
            extra.load_state_dict(state["extras"][name])
        self._best = state["best"]
        self._at_epoch_start = state["random_at_epoch_start"]
        self._random.set(state["random"])

    def __call__(self) -> History:
        """Train to the end; keeps the parameters of the best score, if there are scores."""
        history, plan = self.history, self._plan
        history.stopped = ""
        with tqdm(
            total=plan.steps, initial=history.step, desc="fit", disable=not plan.progress
        ) as bar:
            try:
                while not history.stopped:
                    history.stopped = self._epoch(bar)
            except KeyboardInterrupt:
                history.stopped = "interrupted"
        self._save()
        if self._best is not None:
            self._tensors.restore(self._best)
        elif plan.validate is not None and plan.processes.leads:
            self._warn_of_no_score()
        return history

    def _epoch(self, bar: Any) -> str:
        """Train until the batches end; returns why the run ends, if it does."""
        left, reason = self._batches_left(), self._reason_to_stop()
        while not reason:
            number, batch = next(left, (0, None))
            if not number:
                break
            self._step(arguments_of_batch(batch, number))
            self._show(bar)
            if self._plan.validate_every and self.history.step % self._plan.validate_every == 0:
                self._validate()
            reason = "callback" if self._call_back() else self._reason_to_stop()
            if not reason and self.history.step % self._plan.checkpoint_every == 0:
                self._save()
        if reason and self._is_within_an_epoch(left):
            return reason
        self.history.epoch_ends.append(self.history.step)
        self._at_epoch_start = self._random.get()
        if self._plan.validate_every is None:
            self._validate()
        return reason or self._reason_to_stop()

    def _is_within_an_epoch(self, left: Iterator[Any]) -> bool:
        """Whether there are batches left, or none has been seen; keeps the random state if so.

        A loader need not know how many batches it gives: only the end of them tells.
        """
        if self._seen_in_epoch == 0:
            return True
        now = self._random.get()
        if next(left, None) is None:
            return False
        self._random.set(now)
        return True

    @property
    def _seen_in_epoch(self) -> int:
        """Number of batches that steps were taken on since the last epoch ended."""
        ends = self.history.epoch_ends
        return self.history.step - (ends[-1] if ends else 0)

    def _batches_left(self) -> Iterator[tuple[int, Any]]:
        """The rest of this epoch's batches, with their numbers in it, from one.

        A resumed epoch is iterated over from its start, by the random numbers that it had there.
        """
        done, now = self._seen_in_epoch, self._random.get()
        self._random.set(self._at_epoch_start)
        start_epoch(self._batches, len(self.history.epoch_ends))
        number = 0
        for number, batch in enumerate(self._batches, start=1):
            if number == done:
                self._random.set(now)
            elif number > done:
                yield number, batch
        if number == 0 or number < done:
            raise ValueError(
                f"the loader gave {number} batches in an epoch, of which {done} had been seen: an "
                "epoch must have some, and as many as it had before"
            )

    def _step(self, call: Any) -> None:
        rate = self._steps.learning_rate
        loss = self._steps.step(call)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.history.step + 1}: lower the learning rate; the "
                "last checkpoint is from before, if there is one"
            )
        self.history.losses.append(loss)
        if rate is not None:
            self.history.learning_rates.append(rate)

    def _validate(self) -> None:
        """Score the parameters, and keep them if they are the best so far."""
        history = self.history
        if self._plan.validate is None or history.step in history.scores:
            return
        now = self._random.get()
        with torch.no_grad():
            score = self._plan.processes.broadcast(float(self._plan.validate()))
        self._random.set(now)  # Training goes on as if nobody had looked.
        history.scores[history.step] = score
        best = history.best_score
        if not math.isnan(score) and (best is None or score > best):
            history.best_step, self._best = history.step, self._tensors.copy()

    def _warn_of_no_score(self) -> None:
        history = self.history
        why = (
            f"all scores of validate= are NaN, the first one after step {min(history.scores)}"
            if history.scores
            else f"validate= was not called in the {history.step} steps of the run, which ended "
            "before a first validation was due: give a smaller validate_every="
        )
        warnings.warn(
            f"{why}; no step is known to be the best, and the parameters are those of the last one",
            stacklevel=4,
        )

    def _call_back(self) -> bool:
        """Whether a callback ends the run; all are called."""
        answers = [callback(self.history) for callback in self._plan.callbacks]
        return any(answers)

    def _reason_to_stop(self) -> str:
        history, patience = self.history, self._plan.patience
        if patience is not None:
            since = sum(step > (history.best_step or 0) for step in history.scores)
            if since >= patience:
                return "patience"
        return "finished" if self._plan.is_over(history) else ""

    def _show(self, bar: Any) -> None:
        bar.update()
        if self.history.step % _STEPS_BETWEEN_DISPLAYS == 0:
            recent = self.history.losses[-_STEPS_BETWEEN_DISPLAYS:]
            score = self.history.best_score
            told = "" if score is None else f", best score {score:.4g}"
            bar.set_postfix_str(f"ELBO {-sum(recent) / len(recent):.1f}{told}", refresh=False)

    def _save(self) -> None:
        if self._plan.checkpoint is None or not self._plan.processes.leads:
            return
        write_checkpoint(
            self._plan.checkpoint,
            {
                "tensors": self._tensors.copy(),
                "best": self._best,
                "steps": self._steps.state_dict(),
                "extras": {name: extra.state_dict() for name, extra in self._extras.items()},
                "history": self.history.state_dict(),
                "random_at_epoch_start": self._at_epoch_start,
                "random": self._random.get(),
            },
        )
