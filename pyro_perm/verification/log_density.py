"""The terms of a program's log joint as numbers, at random points of its latent space."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_perm.program.double_precision import DoublePrecision
from pyro_perm.program.program import Program
from pyro_perm.verification.errors import SymmetryVerificationError
from pyro_perm.verification.moves import Move, apply_all

_MAX_DRAWS = 20
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}
# What single precision could not tell from no change at all.
_NEGLIGIBLE = 1e-7
_NUM_PERTURBATIONS, _TIMES_PERTURBED = 3, 10.0


@dataclass(frozen=True)
class Point:
    """A point of the latent space at which the log joint is finite.

    Attributes:
        values: site -> value.
        log_probs: term of the log joint -> its value, in nats.
        rounding: how much of a change of these rounding errors can explain, in nats.
        negligible: a change that is small beside the sum of all their entries' sizes, in nats.
    """

    values: dict[str, Tensor]
    log_probs: dict[str, float]
    rounding: float
    negligible: float


class LogDensity:
    """The terms of a program's log joint as functions of the latent values.

    Attributes:
        latents: the continuous latent sites.

    :param program: the program.
    :param dtype: the precision in which it is computed, ``torch.float64`` or ``torch.float32``.
    """

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._precision: DoublePrecision | nullcontext[None]
        self._precision = DoublePrecision() if dtype == torch.float64 else nullcontext()
        if isinstance(self._precision, DoublePrecision):
            program = program.map_inputs(self._precision.double)
        self._program = program
        self.latents = {
            name: latent
            for name, latent in program.latents.items()
            if not latent.support.is_discrete
        }

    @classmethod
    def in_best_precision(cls, program: Program) -> LogDensity:
        """Double precision, or single precision with a warning where the program has no other.

        It has no other if it fails in double precision at a point at which it runs as it is. What
        else goes wrong is the program's own error, and so is memory that does not suffice.
        """
        double = cls(program, torch.float64)
        try:
            double({})
        except (RuntimeError, TypeError) as error:
            if _is_lack_of_memory(error):
                raise
            single = cls(program, torch.float32)
            single({})
            warnings.warn(
                "the model does not run in double precision, so its symmetry is checked in single "
                f"precision, which notices relative changes above {_ROUNDING[torch.float32]} only "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]})",
                stacklevel=6,
            )
            return single
        double._skip_idle_precision()
        return double

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The terms of the log joint in nats; sites without a value keep theirs."""
        return {name: float(each.sum()) for name, each in self._log_probs(values).items()}

    def draw_point(self) -> Point:
        """Random values for all latent sites.

        :raises SymmetryVerificationError: if the log joint is not finite wherever it is tried.
        """
        for _ in range(_MAX_DRAWS):
            values = {name: latent.draw(self._dtype) for name, latent in self.latents.items()}
            each = self._log_probs(values)
            log_probs = {name: float(log_prob.sum()) for name, log_prob in each.items()}
            if all(map(math.isfinite, log_probs.values())):
                size = sum(float(log_prob.abs().sum()) for log_prob in each.values())
                scale = 1 + size
                return Point(values, log_probs, _ROUNDING[self._dtype] * scale, _NEGLIGIBLE * scale)
        raise SymmetryVerificationError(
            f"the log joint was not finite at {_MAX_DRAWS} random points, so no symmetry of it "
            "could be verified: call with data on which the model's log-probability is finite"
        )

    def perturb(self, point: Point) -> list[dict[str, Tensor]]:
        """The point with every value changed in its last digit, several times."""
        one = torch.finfo(self._dtype).eps
        return [
            {
                site: value * (1 + one * torch.randn_like(value).sign())
                for site, value in point.values.items()
            }
            for _ in range(_NUM_PERTURBATIONS)
        ]

    def with_measured_rounding(
        self, point: Point, perturbed: Sequence[Mapping[str, Tensor]]
    ) -> Point:
        """The same point, where values in their last digits change more than is granted.

        Deep networks may be chaotic: a rounding error grows from layer to layer.

        :param perturbed: what :meth:`perturb` makes of it.
        """
        changes = [max(self.changes_at(point, p).values(), default=0.0) for p in perturbed]
        measured = _TIMES_PERTURBED * max(changes)
        return replace(point, rounding=max(point.rounding, measured))

    def changes(self, point: Point, moves: Sequence[Move]) -> dict[str, float]:
        """By how much the terms that must not change do under some moves, in nats."""
        exempt = frozenset[str]().union(*(move.exempt for move in moves))
        after = self.changes_at(point, apply_all(moves, point.values))
        return {name: change for name, change in after.items() if name not in exempt}

    def changes_at(self, point: Point, moved: Mapping[str, Tensor]) -> dict[str, float]:
        """By how much the terms change, in nats, if some sites take other values.

        :param moved: site -> value; the other sites keep those of the point.
        """
        after = self({**point.values, **moved})
        changes = {name: abs(after[name] - before) for name, before in point.log_probs.items()}
        return {name: math.inf if math.isnan(x) else x for name, x in changes.items()}

    def _skip_idle_precision(self) -> None:
        """Convert nothing from now on where a run has shown that there is nothing to convert."""
        if isinstance(self._precision, DoublePrecision) and not self._precision.is_needed:
            self._precision = nullcontext()

    def _log_probs(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._precision:
            return self._program.run(values).log_probs()


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, which has an error of its own on CUDA alone."""
    texts = ("out of memory", "can't allocate memory")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(t in str(error) for t in texts)
