"""Reads the density of a symmetry's sites off the traced sites of a base guide."""

from __future__ import annotations

from collections.abc import Mapping

from pyro.distributions import Delta
from pyro.ops.provenance import ProvenanceTensor, detach_provenance
from torch import Tensor

from pyro_perm.density.base_guides import registry
from pyro_perm.density.base_guides.one_vector import is_auxiliary_vector, part_of
from pyro_perm.density.base_guides.reader import Drawn, JointDraw, Reader, Sites
from pyro_perm.density.correlated import CorrelatedDensity
from pyro_perm.density.density import Density
from pyro_perm.density.factorized import STICK_BREAKING, FactorizedDensity
from pyro_perm.density.moved_delta import as_drawn
from pyro_perm.density.rescaled_priors import Priors
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.axis import broadcast_shapes


def read_density(sites: Sites, symmetry: SymmetryGroup, priors: Priors | None = None) -> Density:
    """The density of the sites of a symmetry.

    :param sites: trace nodes of the base guide.
    :param priors: those of the sites that are rescaled.
    :raises TypeError: if no reader knows how a site was drawn, or a vector that is drawn jointly
        has other parts than all sites of a symmetry that only permutes.
    """
    return density_of(read_sites(sites, symmetry), symmetry, priors)


def read_sites(sites: Sites, symmetry: SymmetryGroup) -> dict[str, Drawn]:
    """How each site of a symmetry was drawn, without the dimensions where others have plates.

    :param sites: trace nodes of the base guide.
    :raises TypeError: if no reader knows how a site was drawn.
    """
    return {site: _read(site, sites, symmetry) for site in symmetry.sites}


def density_of(
    drawn: Mapping[str, Drawn], symmetry: SymmetryGroup, priors: Priors | None = None
) -> Density:
    """The density of sites that were read.

    :param drawn: how each site of the symmetry was drawn.
    :param priors: those of the sites that are rescaled.
    :raises TypeError: if a vector that is drawn jointly has other parts than all sites of a
        symmetry that only permutes.
    """
    values = {
        site: STICK_BREAKING(each.value.double()) if symmetry.is_simplex(site) else each.value
        for site, each in drawn.items()
    }
    locs = {site: each.loc for site, each in drawn.items()}
    scales = {site: each.scale for site, each in drawn.items()}
    batches = [v.shape[: v.dim() - symmetry.site_rank(site)] for site, v in values.items()]
    factorized = FactorizedDensity(
        symmetry, values, locs, scales, broadcast_shapes(batches), priors=priors
    )
    joint = next((each.joint for each in drawn.values() if each.joint is not None), None)
    if joint is None:
        return factorized
    _require_whole(joint, symmetry)
    return CorrelatedDensity(
        **vars(factorized),
        joint=joint.distribution,
        vector=_without_plates(joint.vector, 1, symmetry.num_plates),
        slices=joint.slices,
    )


def base_node(site: str, sites: Sites) -> str:
    """Name of the traced node that holds the density of a model site.

    :raises TypeError: if no reader knows how the site was drawn.
    """
    return _reader_of(site, sites)[1]


def require_density(site: str, sites: Sites) -> None:
    """Refuse a model site whose density at permuted values is not known.

    :raises TypeError: naming the site, with the fix.
    """
    reader, node = _reader_of(site, sites)
    obstacle = reader.obstacle(node, sites)
    if obstacle is not None:
        raise TypeError(f"site '{site}' {obstacle}")


def _read(site: str, sites: Sites, symmetry: SymmetryGroup) -> Drawn:
    reader, node = _reader_of(site, sites)
    drawn = reader.read(site, node, sites, symmetry.unconstrained_rank(site))
    return remove_padding(drawn, site, symmetry)


def remove_padding(drawn: Drawn, site: str, symmetry: SymmetryGroup) -> Drawn:
    """How a site was drawn, without the singleton dimensions where others have plates.

    :param drawn: as a reader says it.
    """
    rank, unconstrained = symmetry.site_rank(site), symmetry.unconstrained_rank(site)
    padding = symmetry.num_plates - symmetry.site_plates(site)
    # Units along a plate lie along the same dimension of both.
    more = (..., *[None] * (rank - unconstrained))
    value, loc, scale = (
        _without_plates(tensor[more] if rank > unconstrained else tensor, rank, padding)
        for tensor in (drawn.value, drawn.loc, drawn.scale)
    )
    return Drawn(drawn.node, value, loc, scale, drawn.joint)


def _reader_of(site: str, sites: Sites) -> tuple[Reader, str]:
    for reader in registry.READERS:
        node = reader.node_of(site, sites)
        if node is not None:
            return reader, node
    raise TypeError(
        f"site '{site}' {_how_drawn(site, sites)}, whose density at permuted values is not known: "
        f"wrap an {registry.readable_kinds()}, or leave the site out of the symmetry"
    )


def _how_drawn(site: str, sites: Sites) -> str:
    distribution = sites[site]["fn"]
    if not isinstance(distribution, Delta):
        return f"is drawn from a {type(distribution).__name__} in the base guide"
    vectors = [node for node in sites.values() if is_auxiliary_vector(node)]
    for node in vectors:
        if part_of(node["value"], as_drawn(distribution)) is not None:
            return f"is part of a {type(node['fn']).__name__} in the base guide"
    if vectors:
        return (
            "is a function of its part of the vector that the base guide draws, since its support "
            "is constrained or the guide rescales it"
        )
    return "is drawn from a Delta in the base guide"


def _require_whole(joint: JointDraw, symmetry: SymmetryGroup) -> None:
    """Refuse a vector drawn jointly that lacks sites of the symmetry."""
    for site in symmetry.sites:
        if site not in joint.slices:
            raise TypeError(
                f"the base guide draws {', '.join(map(repr, joint.slices))} jointly, but not with "
                f"site '{site}' of the same symmetry: draw all of its sites by one guide"
            )


def _without_plates(tensor: Tensor, rank: int, padding: int) -> Tensor:
    """Without the singleton batch dimensions where other sites have the model's plates.

    Nor does the result track its provenance, which the estimators' arithmetic would lose.
    """
    if type(tensor) is ProvenanceTensor:  # Not isinstance, which is slow: this is every step.
        tensor = detach_provenance(tensor)
    batch = tensor.dim() - rank
    for _ in range(min(padding, batch)):
        batch -= 1
        tensor = tensor.squeeze(batch)
    return tensor
