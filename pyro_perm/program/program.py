"""What the analyses see of somebody's program: its latent sites, and the terms of its log joint.

A Pyro model (:mod:`~pyro_perm.program.pyro_model`) and a plain ``torch.nn.Module``
(:mod:`~pyro_perm.program.torch_module`) are such programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

from pyro_perm.symmetry.binding import SiteShape
from pyro_perm.symmetry.spec import Spec

# Gets tensors that are not latent, and what they are, to be read after "tied to dim 0 of".
Announce = Callable[[Tensor, str], None]


@dataclass(frozen=True)
class Latent:
    """A latent site.

    Attributes:
        value: one of its values, shape ``(*plates, *event)``.
        support: the values that it may take.
        source: the source line of its sample statement.
        prior: its distribution, given the other latent values, if it has one.
        scale: of random values before they meet their constraint.
    """

    value: Tensor
    support: constraints.Constraint
    source: str | None = None
    prior: Distribution | None = None
    scale: float = 1.0

    @property
    def shape(self) -> torch.Size:
        """Shape of its value, plates on the left, event on the right."""
        return self.value.shape

    def draw(self, dtype: torch.dtype) -> Tensor:
        """A random value, normal of scale ``scale`` before it meets its constraint.

        Where there is no such constraint to meet, or the prior rules the value out, the prior
        draws it.
        """
        try:
            transform = biject_to(self.support)
        except NotImplementedError:
            return self._draw_from_prior(dtype)
        shape = transform.inverse_shape(self.shape)
        normal = torch.randn(shape, dtype=dtype, device=self.value.device)
        value: Tensor = transform(self.scale * normal)
        if self.prior is None or bool(self.prior.log_prob(value).isfinite().all()):
            return value
        return self._draw_from_prior(dtype)

    def _draw_from_prior(self, dtype: torch.dtype) -> Tensor:
        if self.prior is None:
            raise ValueError(f"there is no way to draw a value of support {self.support}")
        return self.prior.sample().to(dtype)


@dataclass(frozen=True)
class Factor:
    """A term of the log joint.

    Attributes:
        is_prior: whether it is the prior of the latent site of its name. All else is likelihood,
            variables that are summed out included.
        value: of the site, shape ``(*batch, *event)``.
        log_density: from values, shape ``(..., *batch, *event)``, to log-probabilities in nats,
            scaled and masked, shape ``(..., *batch)``.
    """

    is_prior: bool
    value: Tensor
    log_density: Callable[[Tensor], Tensor]

    def log_prob(self) -> Tensor:
        """The log-probability at the site's own value in nats, shape ``(*batch)``."""
        return self.log_density(self.value)


@dataclass(frozen=True)
class Run:
    """What a program makes of some latent values.

    Attributes:
        factors: name -> term of the log joint, computed when it is asked for.
        max_plate_nesting: how many dimensions of the factors are plates; those further to the left
            belong to enumerated variables.
    """

    factors: Mapping[str, Factor]
    max_plate_nesting: int = 0

    def log_probs(self) -> dict[str, Tensor]:
        """The terms of the log joint in nats, enumerated variables summed out.

        :returns: name -> log-probabilities, shape ``(*batch)``. The terms in which enumerated
            variables occur are one scalar, named :data:`SUMMED_OUT`.
        """
        return {name: factor.log_prob() for name, factor in self.factors.items()}


SUMMED_OUT = "all sites with enumerated variables"


class Program(Protocol):
    """A function of latent values, with everything else held fixed: randomness, inputs, data."""

    @property
    def latents(self) -> Mapping[str, Latent]:
        """The latent sites, those excepted that are summed out."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of latent sites, which a group must move alike: name -> latent site."""

    @property
    def exclusions(self) -> Mapping[str, str]:
        """Latent sites that cannot be permuted at all, with the reasons."""

    @property
    def hidden_data(self) -> str | None:
        """An input that holds data in another form than a tensor."""

    def fixed_tensors(self) -> Iterator[tuple[Tensor, str]]:
        """Tensors that are not latent, and what they are: inputs, parameters, buffers."""

    def run(self, values: Mapping[str, Tensor], announce: Announce = ...) -> Run:
        """Run with some latent values; the other sites keep theirs.

        :param values: site -> value.
        :param announce: is told of tensors that are not latent and come up on the way.
        """

    def map_inputs(self, convert: Callable[[Any], Any]) -> Program:
        """The same program with other inputs."""

    def site_shapes(self, spec: Spec) -> dict[str, SiteShape]:
        """The shapes of a spec's sites.

        :raises ValueError: if a site is not latent, or cannot be permuted.
        """


def disregard(tensor: Tensor, what: str) -> None:
    """Take no notice of a tensor."""


def is_simplex(support: constraints.Constraint) -> bool:
    """Whether a site holds probability vectors, as a Dirichlet does."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.simplex
