"""Reads the density off the traced sites of a base guide.

``AutoNormal`` draws each site by itself, as ``<site>_unconstrained``, and other guides as the site.
``AutoMultivariateNormal`` and its like draw one vector, ``_<guide>_latent``, of which the sites are
consecutive parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_perm.density.correlated import CorrelatedDensity, marginals, unexpanded
from pyro_perm.density.factorized import STICK_BREAKING, FactorizedDensity
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.unit_layout import broadcast_shapes

Sites = Mapping[str, Mapping[str, Any]]


class _Vector(NamedTuple):
    """A traced vector of which several sites are parts.

    Attributes:
        distribution: of the vector.
        value: what was drawn, shape ``(*batch, size)``.
        slices: site -> where its value lies in the vector, flattened.
    """

    distribution: Any
    value: Tensor
    slices: dict[str, slice]


def read_density(sites: Sites, symmetry: SymmetryGroup) -> FactorizedDensity:
    """The density of the sites of a symmetry.

    :param sites: trace nodes of the base guide.
    :raises TypeError: if a site is no part of a Gaussian, or a joint Gaussian has other parts than
        all sites of a symmetry that only permutes.
    """
    plates = max(symmetry.site_plates(site) for site in symmetry.sites)
    values, locs, scales = {}, {}, {}
    vectors: dict[str, _Vector] = {}
    for name in symmetry.sites:
        node, rank = base_site(sites, name), symmetry.site_rank(name)
        normal = as_normal(node["fn"])
        if normal is not None:
            drawn = node["value"], unexpanded(normal.loc, rank), unexpanded(normal.scale, rank)
            padding = plates - symmetry.site_plates(name)
        else:
            vectors[name] = _vector_of(name, sites)
            drawn, padding = _part_of(vectors[name], name, symmetry.site_shape(name)), plates
        value, loc, scale = (_drop_plates(tensor, rank, padding) for tensor in drawn)
        values[name] = STICK_BREAKING(value.double()) if symmetry.is_simplex(name) else value
        locs[name], scales[name] = loc, scale
    batches = [v.shape[: v.dim() - symmetry.site_rank(name)] for name, v in values.items()]
    factorized = FactorizedDensity(symmetry, values, locs, scales, broadcast_shapes(batches))
    joint = [v for v in vectors.values() if as_normal(v.distribution) is None]
    if not joint:
        return factorized
    _require_whole(joint[0], symmetry)
    return CorrelatedDensity(
        **vars(factorized),
        joint=joint[0].distribution,
        vector=_drop_plates(joint[0].value, 1, plates),
        slices=joint[0].slices,
    )


def base_site(sites: Sites, name: str) -> Mapping[str, Any]:
    """The traced node that holds the density of a model site: its auxiliary one, or itself."""
    return sites.get(f"{name}_unconstrained") or sites[name]


def as_normal(distribution: Any) -> Normal | None:
    """The Normal behind a distribution with independent entries, or None."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution if isinstance(distribution, Normal) else None


def _vector_of(name: str, sites: Sites) -> _Vector:
    """The vector of which a site is a part."""
    drawn_from = base_site(sites, name)["fn"]
    kind = Delta if isinstance(drawn_from, Delta) else type(drawn_from)
    found = f"is drawn from a {kind.__name__}"
    for latent, node in sites.items():
        if latent.endswith("_latent") and node["infer"].get("is_auxiliary"):
            vector = _Vector(node["fn"], node["value"], _slices(latent, sites))
            if name in vector.slices:
                if _is_gaussian(vector.distribution):
                    _require_part(vector, name, sites[name]["value"])
                    return vector
                found = f"is part of a {type(vector.distribution).__name__}"
    raise TypeError(
        f"site '{name}' {found} in the base guide, whose density at permuted values is not known: "
        "wrap an AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal or "
        "AutoLowRankMultivariateNormal, or leave the site out of the symmetry"
    )


def _require_part(vector: _Vector, name: str, value: Tensor) -> None:
    """Refuse sites that are functions of their part, up to the group's action on the sites."""
    part = vector.value[..., vector.slices[name]]
    if torch._C._get_tracing_state():
        return
    if all(map(torch.equal, part.abs().aminmax(), value.abs().aminmax())):
        return
    raise TypeError(
        f"site '{name}' is a function of its part of the vector that the base guide draws, since "
        "its support is constrained or the guide rescales it: wrap an AutoNormal"
    )


def _slices(latent: str, sites: Sites) -> dict[str, slice]:
    """Where the sites that follow a vector lie in it; empty if they do not fill it.

    They do not where the support of one has other coordinates than its values.
    """
    vector = sites[latent]["value"]
    size, particles = vector.shape[-1], vector.shape[:-1].numel()
    slices: dict[str, slice] = {}
    names = list(sites)
    start = 0
    for name in names[names.index(latent) + 1 :]:
        if start < size and isinstance(sites[name].get("fn"), Delta):
            end = start + sites[name]["value"].numel() // particles
            slices[name] = slice(start, end)
            start = end
    return slices if start == size else {}


def _is_gaussian(distribution: Any) -> bool:
    joint = isinstance(distribution, MultivariateNormal | LowRankMultivariateNormal)
    return joint or as_normal(distribution) is not None


def _require_whole(vector: _Vector, symmetry: SymmetryGroup) -> None:
    """Refuse a vector drawn jointly that lacks sites of a symmetry, or whose units do not stay."""
    for site in symmetry.sites:
        if site not in vector.slices:
            raise TypeError(
                f"the base guide draws {', '.join(map(repr, vector.slices))} jointly, but not with "
                f"site '{site}' of the same symmetry: draw all of its sites by one guide"
            )
    for factor in symmetry.factors:
        for action in factor.actions:
            raise TypeError(
                f"group '{factor.name}' {action.deed} its units, which takes a base guide with "
                "independent sites: wrap an AutoNormal, or find a symmetry that only permutes"
            )


def _part_of(vector: _Vector, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Value, loc and scale of a site."""
    normal = as_normal(vector.distribution)
    if normal is None:
        loc, scale = marginals(vector.distribution)
    else:
        loc, scale = unexpanded(normal.loc, 1), unexpanded(normal.scale, 1)
    where = vector.slices[name]
    value, loc, scale = (
        tensor[..., where].reshape(*tensor.shape[:-1], *shape)
        for tensor in (vector.value, loc, scale)
    )
    return value, loc, scale


def _drop_plates(tensor: Tensor, rank: int, padding: int) -> Tensor:
    """Drop the singleton batch dimensions where other sites have the model's plates."""
    batch = tensor.dim() - rank
    for _ in range(min(padding, batch)):
        batch -= 1
        tensor = tensor.squeeze(batch)
    return tensor
