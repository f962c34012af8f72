r"""The evidence ``log p(D)`` of small models, by annealed importance sampling (Neal 2001).

Particles from the prior follow ``p(w) p(D | w)^b`` while the power ``b`` rises from 0 to 1, by one
transition of Hamiltonian Monte Carlo at each ``b_t``. Their weights

``prod_t p(D | w_t)^(b_{t+1} - b_t)``

have mean ``p(D)``, however slowly the transitions mix, so that the logarithm of their average
bounds ``log p(D)`` from below in expectation. The transitions are tuned in a pilot run, and are
fixed in the second run, which alone counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_perm.posterior.bounds.packed_model import PackedModel
from pyro_perm.program.batches import Data
from pyro_perm.program.call import refuse_shared_keywords
from pyro_perm.program.log_prob_shapes import LogProbShapes
from pyro_perm.program.restoration import restored

_POWER = 4
_ACCEPTANCE = 0.8
_FIRST_STEP_SIZE = 0.3
_ADAPTATION = 0.3

# From positions, shape (particles, dimensions), and a power: the gradient of the annealed
# log-density, that log-density, and the log-likelihood.
Annealed = Callable[[Tensor, float], tuple[Tensor, tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Evidence:
    """An estimate of ``log p(D)``, in nats.

    Attributes:
        log_evidence: the estimate, a lower bound in expectation.
        standard_error: of the estimate, from the spread of the weights.
        log_weights: of the particles, shape ``(num_particles,)``.
    """

    log_evidence: float
    standard_error: float
    log_weights: Tensor


@refuse_shared_keywords
def log_evidence(
    model: Callable[..., Any],
    *args: Any,
    num_particles: int = 200,
    num_temperatures: int = 300,
    num_leapfrog_steps: int = 8,
    progress: bool = True,
    **kwargs: Any,
) -> Evidence:
    """Estimate ``log p(D)`` by annealed importance sampling (Neal 2001).

    It is meant for models of few weights, to compare bounds with the truth. The standard error is
    to be trusted where many particles share the weight; if in doubt, compare a longer run.

    :param model: a model with continuous latent sites, which :func:`torch.func.vmap` vectorizes.
    :param args: arguments of the model, with its observations; ``kwargs`` likewise. In their place,
        a loader as :func:`symmetrized_elbo` takes it, whose batches are all kept in memory.
    :param num_particles: number of independent particles in each of the two runs, at least 2.
    :param num_temperatures: number of transitions from the prior to the posterior.
    :param num_leapfrog_steps: gradients for each transition.
    :param progress: whether to show a progress bar.
    :raises ValueError: if a latent site is discrete, its density is scaled, or a number too small;
        if a plate has more rows than the arguments, or the batches of a loader do not have each of
        its rows once; as ``Trace_ELBO``, if a site is batched along other dimensions than its
        plates'.
    """
    if num_particles < 2 or num_temperatures < 1 or num_leapfrog_steps < 1:
        raise ValueError(
            f"num_particles={num_particles} must be at least 2, num_temperatures="
            f"{num_temperatures} and num_leapfrog_steps={num_leapfrog_steps} at least 1"
        )
    powers = [(t / num_temperatures) ** _POWER for t in range(num_temperatures + 1)]
    shapes = LogProbShapes()  # Validation is off below.
    with (
        restored(model, args, kwargs) as writes,
        torch.no_grad(),
        pyro.validation_enabled(False),
        tqdm(total=2 * num_temperatures, desc="annealing", disable=not progress) as bar,
    ):
        with writes, shapes:
            packed = PackedModel(model, Data.of(model, args, kwargs))
        annealed = _annealed(packed)
        transitions = []
        pilot = _pilot(annealed, packed.draw(num_particles), powers[1:], num_leapfrog_steps)
        for transition in pilot:
            transitions.append(transition)
            bar.update()
        position = packed.draw(num_particles)
        log_weights = position.new_zeros(num_particles)
        for (before, after), transition in zip(pairwise(powers), transitions, strict=True):
            position, log_likelihood, _ = transition(annealed, position)
            log_weights += (after - before) * log_likelihood
            bar.update()
    log_mean = log_weights.logsumexp(0) - math.log(num_particles)
    error = (log_weights - log_mean).exp().std() / math.sqrt(num_particles)
    return Evidence(log_mean.item(), error.item(), log_weights)


@dataclass(frozen=True)
class _Transition:
    """A step of Hamiltonian Monte Carlo.

    Attributes:
        power: of the likelihood.
        step_size: of the leapfrog steps, shape ``(dimensions,)``.
        num_leapfrog_steps: their number.
    """

    power: float
    step_size: Tensor
    num_leapfrog_steps: int

    def __call__(self, annealed: Annealed, position: Tensor) -> tuple[Tensor, Tensor, float]:
        """The new positions, the log-likelihood at the old ones, and the rate of acceptance."""
        proposal, momentum = position, torch.randn_like(position)
        gradient, (log_density, log_likelihood) = annealed(position, self.power)
        energy = 0.5 * momentum.square().sum(-1) - log_density
        for _ in range(self.num_leapfrog_steps):
            momentum = momentum + 0.5 * self.step_size * gradient
            proposal = proposal + self.step_size * momentum
            gradient, (log_density, _) = annealed(proposal, self.power)
            momentum = momentum + 0.5 * self.step_size * gradient
        change = 0.5 * momentum.square().sum(-1) - log_density - energy
        accepted = torch.rand_like(change).log() < -change  # False where the energy is not finite.
        position = torch.where(accepted[:, None], proposal, position)
        return position, log_likelihood, accepted.double().mean().item()


def _pilot(
    annealed: Annealed, position: Tensor, powers: Iterable[float], num_leapfrog_steps: int
) -> Iterator[_Transition]:
    """Transitions tuned on particles of their own: to their spread, and the rate of acceptance."""
    step_size = _FIRST_STEP_SIZE
    for power in powers:
        transition = _Transition(power, step_size * position.std(0), num_leapfrog_steps)
        position, _, acceptance = transition(annealed, position)
        step_size *= math.exp(_ADAPTATION * (acceptance - _ACCEPTANCE))
        yield transition


def _annealed(packed: PackedModel) -> Annealed:
    def of_batch(batch: int) -> Annealed:
        def log_density(position: Tensor, power: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            log_prior, log_likelihood = packed.log_densities(position, batch)
            total = log_prior + power * log_likelihood
            return total, (total, log_likelihood)

        gradient = torch.func.grad(log_density, has_aux=True)
        mapped: Annealed = torch.func.vmap(gradient, in_dims=(0, None))
        return mapped

    parts = [of_batch(batch) for batch in range(packed.num_batches)]

    def annealed(position: Tensor, power: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        gradient, (log_density, log_likelihood) = parts[0](position, power)
        for part in parts[1:]:
            more, (of_density, of_likelihood) = part(position, power)
            gradient, log_density = gradient + more, log_density + of_density
            log_likelihood = log_likelihood + of_likelihood
        return gradient, (log_density, log_likelihood)

    return annealed
