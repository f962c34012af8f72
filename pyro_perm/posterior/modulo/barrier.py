"""The loss between two solutions, before and after alignment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.latents import sites_to_sum_out
from pyro_perm.posterior.likelihood import likelihood_terms
from pyro_perm.posterior.modulo.alignment import align
from pyro_perm.program.call import Call
from pyro_perm.program.full_data import FullData, Term, survey
from pyro_perm.program.log_prob_shapes import LogProbShapesInPlates
from pyro_perm.program.restoration import restored
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.symmetry.values import require_tensors, with_values

Values = Mapping[str, Tensor]
Loss = Callable[[Values], "float | Tensor"]


@dataclass(frozen=True)
class LossPath:
    """The loss along the straight line between two solutions.

    Attributes:
        fractions: of the way, from 0 to 1, shape ``(num_points,)``.
        losses: there, same shape.
    """

    fractions: Tensor
    losses: Tensor

    @property
    def barrier(self) -> float:
        """The highest rise above the line through the two ends (Entezari et al. 2022, Eq. 1)."""
        chord = torch.lerp(self.losses[0], self.losses[-1], self.fractions)
        return (self.losses - chord).max().item()


@dataclass(frozen=True)
class InterpolationBarrier:
    """The paths to one solution from another, and from its closest permutation.

    Attributes:
        original: from the second solution as it is.
        aligned: from the second solution aligned to the first, both of them balanced where units
            may be rescaled.
    """

    original: LossPath
    aligned: LossPath


def interpolation_barrier(
    loss: Loss,
    first: Values,
    second: Values,
    symmetry: PermutationSymmetry,
    *,
    num_points: int = 25,
) -> InterpolationBarrier:
    """The linear interpolation barrier between two solutions, before and after alignment.

    Rossi et al. (2023) find that posteriors of Bayesian networks are linearly connected once
    aligned. Usage:

    >>> import pyro, torch
    >>> import pyro_perm as pp
    >>> def model(y):
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([2]).to_event(1))
    ...     pyro.sample("y", pyro.distributions.Normal(w.square().sum(), 0.1), obs=y)
    >>> y = torch.tensor(5.0)
    >>> loss, symmetry = pp.negative_log_joint(model, y), pp.find_symmetry(model, y)
    >>> first, second = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 1.0])}
    >>> barrier = pp.interpolation_barrier(loss, first, second, symmetry)
    >>> barrier.original.barrier > 10, barrier.aligned.barrier
    (True, 0.0)

    :param loss: of values of the latent sites: :func:`negative_log_joint`,
        :func:`negative_log_likelihood`, or one's own. For networks, of a ``state_dict``:
        ``lambda state: cross_entropy(functional_call(network, state, x), y)``, with
        :func:`reset_statistics` of the state where BatchNorm's moments do not fit mixed weights.
    :param first: site -> value, such as a guide's median or one draw, or a network's
        ``state_dict``. What is not floating point, as counters of batches, stays as it is here.
    :param second: likewise.
    :param symmetry: the group, as in :func:`align`.
    :param num_points: number of points on the line, both ends included.
    :raises ValueError: if the two do not fit each other or the symmetry, or for fewer than three
        points.
    """
    if num_points < 3:
        raise ValueError(f"num_points must be at least 3, to see between the ends: {num_points}")
    for values, what in ((first, "first"), (second, "second")):
        require_tensors(values, what)
    if first.keys() != second.keys():
        raise ValueError(f"the solutions differ in their sites: {list(first)} and {list(second)}")
    alignment = align(second, symmetry, first)
    ends = (first, second), ({**first, **alignment.reference}, alignment.samples)
    fractions = torch.linspace(0, 1, num_points, dtype=torch.float64, device="cpu")
    return InterpolationBarrier(
        *(LossPath(fractions, _along(loss, *pair, fractions)) for pair in ends)
    )


def negative_log_joint(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Loss:
    """``-log p(D, w)`` as a function of the latent values, in nats and on all of the data.

    Latent sites that have no value are summed out, where the model marks them for enumeration.
    """
    evaluate = _evaluator(Call(model, args, kwargs))

    def loss(values: Values) -> Tensor:
        program, terms = evaluate(values)
        return -program.log_joint(terms)

    return loss


def negative_log_likelihood(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Loss:
    """``-log p(D | w)`` as a function of the latent values, likewise."""
    evaluate = _evaluator(Call(model, args, kwargs))

    def loss(values: Values) -> Tensor:
        program, terms = evaluate(values)
        return -program.log_joint(likelihood_terms(program, terms))

    return loss


def _evaluator(call: Call) -> Callable[[Values], tuple[FullData, Sequence[Term]]]:
    """The terms of a model's log joint as a function of the latent values."""

    @functools.cache
    def cached_survey() -> FullData:
        with fixed_seed(), LogProbShapesInPlates():  # The solutions may be of MCMC.
            return survey(call)

    @torch.no_grad()
    def evaluate(values: Values) -> tuple[FullData, Sequence[Term]]:
        with restored(call.program, call.args, call.kwargs) as writes, writes:
            model = cached_survey()
            left_out = sites_to_sum_out(model, values, "the solution has")
            return model, model.evaluate(values, left_out).terms

    return evaluate


def _along(loss: Loss, first: Values, second: Values, fractions: Tensor) -> Tensor:
    losses = [loss(_point_between(first, second, float(t))) for t in fractions]
    return torch.tensor([float(value) for value in losses], dtype=torch.float64, device="cpu")


def _point_between(first: Values, second: Values, fraction: float) -> dict[str, Tensor]:
    """Values on the line between two solutions, in the first's precision; integers do not mix."""
    mixed = {
        site: torch.lerp(value, second[site].to(value), fraction)
        for site, value in first.items()
        if value.is_floating_point() or value.is_complex()
    }
    return with_values(first, mixed)
