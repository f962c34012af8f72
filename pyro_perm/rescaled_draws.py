"""Draws of a symmetrized guide that rescales units, as the prior has them along their orbits.

By how much a unit is rescaled depends on all of its entries, and these belong to several sites. So
the base guide runs twice: once to draw, and once more to pass on the same values, moved. Each of
its sites is seen from outside in one of the two runs.

With ``w' = t . g . w`` the density of a draw is that of the guide at ``w'``: the log-ratio at ``w``
and the change ``log p(w') - log p(w)`` of the prior along the orbit. In an ELBO the latter cancels
with the model's own prior, whatever the scales.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Delta, TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from pyro_perm.density.base_guides import read_density
from pyro_perm.density.base_guides.independent_normals import unconstrained_node
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.prior_reader import PriorReader
from pyro_perm.program.given_values import GivenValues
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.actions.scale import Scale
from pyro_perm.symmetry.elements import AnyElement, Elements, as_element, unit_of
from pyro_perm.trace_sites import AUXILIARY, SymmetrizeMessenger, element_site

# No effect handler, which would look at every message of each step.
_rescales: ContextVar[bool] = ContextVar("rescales_draws", default=True)


def rescales_draws() -> bool:
    """Whether a guide that could rescale its draws is to do so."""
    return _rescales.get()


@contextmanager
def unrescaled() -> Iterator[None]:
    """A context in which guides that rescale units pass on what their base guide draws.

    Whoever takes an ELBO of the base guide apart is in need of it; a loss that does not look at the
    draws spares their rescaling.
    """
    token = _rescales.set(False)
    try:
        yield
    finally:
        _rescales.reset(token)


class LogScales(TorchDistribution):
    """By how much to rescale the units of a draw, with log-density zero.

    The guide's density is accounted for elsewhere, see :mod:`pyro_perm.rescaled_draws`.

    :param density: of the base guide, with its draw and the priors.
    :param group: the group whose units are rescaled.
    :param num_plates: number of singleton dimensions to the right of the particles' batch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, density: FactorizedDensity, group: str, num_plates: int) -> None:
        self._density, self._group = density, group
        batch_shape = torch.Size((*density.batch_shape, *(1,) * num_plates))
        # Without particles there is no batch, and plates broadcast against nothing.
        batch_shape = batch_shape if density.batch_shape else torch.Size()
        event_shape = torch.Size([density.symmetry.groups[group]])
        super().__init__(batch_shape, event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LogScales:
        """The same: every particle has scales of its own."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(
                f"the guide draws a batch of shape {tuple(self.batch_shape)}, but runs in plates "
                f"of shape {tuple(batch_shape)}: rescaled draws are one for each particle; set "
                "max_plate_nesting of the loss to the number of plates of the model"
            )
        return self

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Logarithms of scales, shape ``(*batch_shape, n)``."""
        assert not sample_shape
        log_scales = sample_log_scales(self._density, self._group)
        return log_scales.reshape(*self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, shape ``(*batch)``."""
        return torch.zeros(value.shape[:-1], device=value.device)


def draw_rescaled(
    base: Callable[..., Any],
    symmetry: SymmetryGroup,
    permutations: Mapping[str, AnyElement],
    priors: PriorReader,
    args: Any,
    kwargs: Any,
) -> tuple[SymmetrizeMessenger, Any]:
    """Draw from a base guide, permute units and rescale them.

    :param permutations: an element of every group, without scales.
    :returns: what was drawn, with the change of the prior's log-density, and the guide's result.
    """
    with _DrawsAlone(symmetry.sites), SymmetrizeMessenger() as rehearsal:
        base(*args, **kwargs)
    density = read_density(rehearsal.sites, symmetry, priors(rehearsal.sites, args, kwargs))
    log_scales = {
        group: pyro.sample(
            element_site(symmetry, group, Scale.name),
            LogScales(density, group, symmetry.num_plates),
            infer=AUXILIARY,
        )
        for group in symmetry.open_groups
    }
    elements = add_scales(symmetry, permutations, log_scales)
    values = {
        name: node["value"]
        for name, node in rehearsal.sites.items()
        if not (isinstance(node["fn"], Delta) or name in symmetry.sites)
    }
    with _Hide(values), SymmetrizeMessenger(symmetry, elements) as drawn, GivenValues(values):
        result = base(*args, **kwargs)
    without_plates = {g: t.reshape(*density.batch_shape, -1) for g, t in log_scales.items()}
    drawn.log_prior_change = log_prior_change(density, without_plates)
    return drawn, result


def sample_log_scales(density: FactorizedDensity, group: str) -> Tensor:
    """Draws from the prior along the orbits of a group's units, shape ``(*batch, n)``."""
    assert density.priors is not None
    values = density.with_fixed_draws().values
    log_scales = density.priors.sample_log_scales(density.symmetry, group, values)
    return log_scales.to(next(iter(values.values())))


def add_scales(
    symmetry: SymmetryGroup, permutations: Elements, log_scales: Mapping[str, Tensor]
) -> dict[str, AnyElement]:
    """Elements that rescale units, and put them into other places.

    :param permutations: elements without scales; those of groups that are missing do nothing.
    :param log_scales: group -> for each unit as it was drawn the logarithm of its scale, shape
        ``(*batch, n)``.
    """
    elements = dict(permutations)
    for group, each in log_scales.items():
        in_place = symmetry.factor(group).identity(each.device)
        element = as_element(permutations.get(group, in_place.expand(each.shape)))
        units = unit_of(element.permutation).expand(each.shape)
        elements[group] = Scale().with_part(element, each.gather(-1, units))
    return elements


def log_prior_change(density: FactorizedDensity, log_scales: Mapping[str, Tensor]) -> Tensor:
    """``log p(t . w) - log p(w)``, shape ``(*batch)``, in nats and double precision.

    :param log_scales: group -> logarithms of the units' scales, shape ``(*batch, n)``.
    """
    assert density.priors is not None
    symmetry, values = density.symmetry, density.values
    rescaled = symmetry.apply(add_scales(symmetry, {}, log_scales), values)
    before, after = (density.priors.log_prob(symmetry, each) for each in (values, rescaled))
    return after - before


class _DrawsAlone(Messenger):
    """Shows what a base guide draws, but not the sites that are to be moved or follow from others.

    :param moved: names of the sites that are moved; what the base guide draws there itself is shown
        under the name that it has once they are.
    """

    def __init__(self, moved: Collection[str]) -> None:
        super().__init__()
        self.moved = moved

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            return
        if isinstance(msg["fn"], Delta):
            msg["stop"] = True
        elif msg["name"] in self.moved:
            node = unconstrained_node(msg["name"])
            msg["value"] = pyro.sample(node, msg["fn"], infer=AUXILIARY)
            msg["done"] = msg["stop"] = True


class _Hide(Messenger):
    """Keeps sites from the handlers outside."""

    def __init__(self, sites: Collection[str]) -> None:
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        msg["stop"] = msg["stop"] or msg["name"] in self.sites
