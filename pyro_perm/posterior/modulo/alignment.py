"""Moving posterior samples to one of the equivalent modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.modulo.canonical_order import order_of_units
from pyro_perm.posterior.modulo.weight_matching import Matching, descend, match
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.balance import balance
from pyro_perm.symmetry.elements import AnyElement, Elements, compose, transform
from pyro_perm.symmetry.values import require_tensors, require_values, with_values

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Alignment:
    """Samples moved to one mode.

    Attributes:
        samples: site -> aligned samples, shape ``(*draws, *site shape)``; sites that no group
            permutes are as they were.
        permutations: group -> permutation, shape ``(*draws, n)``, or an element where the group
            does more than permute units and flip them: the aligned samples are
            ``symmetry.apply(permutations, samples)``.
        reference: site of the symmetry -> what the draws were brought close to: the reference
            given, its units balanced where they may be rescaled, or the mean of the aligned draws.
    """

    samples: dict[str, Tensor]
    permutations: dict[str, AnyElement]
    reference: dict[str, Tensor]

    @property
    def state_dicts(self) -> list[dict[str, Tensor]]:
        """The aligned samples one by one, as ``load_state_dict`` of a network takes them."""
        draws = next(iter(self.permutations.values())).shape[:-1]
        num, batch = draws.numel(), len(draws)
        flat = {k: value.reshape(num, *value.shape[batch:]) for k, value in self.samples.items()}
        each = ({name: value[i] for name, value in flat.items()} for i in range(num))
        return [with_values(self.samples, values) for values in each]


@torch.no_grad()
def align(
    samples: Values | Sequence[Values],
    symmetry: PermutationSymmetry,
    reference: Values | None = None,
    *,
    num_restarts: int = 10,
) -> Alignment:
    """Permute the units of every draw so that all draws are close to one reference.

    The squared distance to the reference is minimized over the group: exactly where groups share no
    sites, else by coordinate descent from several starts (weight matching, Ainsworth et al. 2023).
    The result does not depend on how the units of any draw were permuted.

    Where groups rescale their units, draws and reference are first brought to their balanced
    representatives, the shortest of all equivalent weights: the incoming entries of each unit and
    its outgoing ones have the same norm. Distances are those between these. A dead unit, of which
    one end is zero, has no such scale, and keeps its own. Usage:

    >>> import torch
    >>> import pyro_perm as pp
    >>> symmetry = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (3,)})
    >>> reference = {"w": torch.tensor([1.0, 2.0, 3.0])}
    >>> draws = {"w": torch.tensor([[2.1, 3.1, 0.9], [0.8, 1.7, 3.2]])}
    >>> pp.align(draws, symmetry, reference).samples["w"]
    tensor([[0.9000, 2.1000, 3.1000],
            [0.8000, 1.7000, 3.2000]])

    Without a reference, draws are aligned to their own mean, found together with the permutations
    from the first draw on (generalized Procrustes analysis, Gower 1975); the mean's units are in
    canonical order: sorted by what belongs to them, lexicographically, in the order of the
    symmetry's sites. A single draw just gets that order.

    :param samples: site -> shape ``(*draws, *site shape)``, the leading dimensions being the same
        for all sites: ``(draw,)``, ``(chain, draw)``, or none, for the locs of a guide. Or one
        ``state_dict`` each of several networks, which are stacked; the aligned ones are
        :attr:`Alignment.state_dicts`. Running moments move with their channels, and do not count.
    :param symmetry: the group, bound to the model: ``guide.symmetry``, or one that
        :func:`find_symmetry` returned, or that was verified.
    :param reference: site -> value of the site's shape.
    :param num_restarts: number of random starts where groups share sites.
    :returns: aligned samples, and the permutations.
    :raises TypeError: if values are no tensors by name, or the symmetry is none.
    :raises ValueError: if a site of the symmetry is missing, has the wrong shape or values that are
        not finite, or too large to be balanced, or if the symmetry is not bound to a model.
    """
    group, compact = _groups(symmetry)
    if isinstance(samples, Sequence):
        samples = _stack(samples)
    values, draws = _flat(samples, group, "samples")
    scales = balance(group, values)
    balanced = group.apply(scales, values)
    order = order_of_units(balanced, compact)
    ordered = compact.apply(order, balanced)
    if reference is None:
        mean, matched = _align_to_mean(ordered, compact, num_restarts)
        target = order_of_units(mean, compact)
    else:
        fixed, shape = _flat(reference, group, "reference")
        if shape:
            raise ValueError(
                f"the reference is one value a site, but has leading dimensions {tuple(shape)}: "
                "take one draw, or the mean of aligned ones"
            )
        fixed = group.apply(balance(group, fixed), fixed)
        # Both sides in canonical order: equivalent weights match before the search begins.
        to_order = order_of_units(fixed, compact)
        mean = compact.apply(to_order, fixed)
        matched = match(_matching(ordered, mean, compact), num_restarts)
        target = compact.inverse(to_order)
    permutations = _after(scales, compact.compose(target, compact.compose(matched, order)))
    return Alignment(
        samples=with_values(samples, _unflat(group.apply(permutations, values), draws)),
        permutations={
            name: transform(lambda part: part.reshape(*draws, -1), element)
            for name, element in permutations.items()
        },
        reference={site: value[0] for site, value in compact.apply(target, mean).items()},
    )


@torch.no_grad()
def canonical_order(samples: Values, symmetry: PermutationSymmetry) -> dict[str, Tensor]:
    """Bring the units of every draw, or of a network's ``state_dict``, into canonical order.

    Equivalent weights become the same weights, unless distinct units tie: units are sorted by what
    belongs to them, lexicographically, in the order of the symmetry's sites, and each takes the
    largest of its own images. Before that, units that may be rescaled are balanced, as by
    :func:`align`; a dead one keeps its scale. Usage:

    >>> import torch
    >>> import pyro_perm as pp
    >>> symmetry = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (3,)})
    >>> pp.canonical_order({"w": torch.tensor([3.0, 1.0, 2.0])}, symmetry)
    {'w': tensor([1., 2., 3.])}

    :param samples: site -> shape ``(*draws, *site shape)``, as in :func:`align`.
    :param symmetry: the group, bound to the model.
    :returns: the same sites; those that no group permutes are as they were.
    :raises ValueError: as :func:`align` does.
    """
    group, compact = _groups(symmetry)
    values, draws = _flat(samples, group, "samples")
    balanced = group.apply(balance(group, values), values)
    ordered = compact.apply(order_of_units(balanced, compact), balanced)
    return with_values(samples, _unflat(ordered, draws))


def _after(scales: Elements, permutations: Elements) -> dict[str, AnyElement]:
    """The elements that rescale units, then permute them; either may lack some groups."""
    both = {g: compose(permutations[g], scales[g]) for g in scales.keys() & permutations.keys()}
    return {**scales, **permutations, **both}


def _groups(symmetry: PermutationSymmetry) -> tuple[SymmetryGroup, SymmetryGroup]:
    """The group, and what of it is compact."""
    if not isinstance(symmetry, PermutationSymmetry):
        raise TypeError(
            f"symmetry must be a PermutationSymmetry, but is a {type(symmetry).__name__}: find it "
            "with find_symmetry(model, ...), or take guide.symmetry once the guide has run"
        )
    return symmetry.group, symmetry.group.compact_part


def _stack(state_dicts: Sequence[Values]) -> dict[str, Tensor]:
    """The state of several networks as one, with a leading dimension.

    :raises ValueError: if there is none, or they differ in names or shapes.
    """
    if not state_dicts:
        raise ValueError("there are no samples to align")
    for number, each in enumerate(state_dicts):
        require_tensors(each, f"state_dict {number}")
    first = state_dicts[0]
    for number, other in enumerate(state_dicts):
        shapes, expected = ({k: tuple(v.shape) for k, v in each.items()} for each in (other, first))
        if shapes != expected:
            name = min(k for k, _ in shapes.items() ^ expected.items())
            raise ValueError(
                f"'{name}' is {_shape_in(other, name)} in state_dict {number}, but "
                f"{_shape_in(first, name)} in the first: align networks of one architecture"
            )
    stacked = {name: torch.stack([each[name] for each in state_dicts]) for name in first}
    return with_values(first, stacked)


def _shape_in(values: Values, name: str) -> str:
    return f"of shape {tuple(values[name].shape)}" if name in values else "absent"


def _align_to_mean(
    values: Values, symmetry: SymmetryGroup, num_restarts: int
) -> tuple[dict[str, Tensor], dict[str, AnyElement]]:
    """The mean of aligned draws, as one draw, and the permutations that align them."""
    mean = {site: value[:1] for site, value in values.items()}
    permutations = match(_matching(values, mean, symmetry), num_restarts)
    spread = torch.inf
    while True:
        aligned = symmetry.apply(permutations, values)
        mean = {site: value.mean(0, keepdim=True) for site, value in aligned.items()}
        problem = _matching(values, mean, symmetry)
        permutations = descend(problem, permutations)
        previous, spread = spread, float(problem.squared_distance(permutations).sum())
        if not spread < previous:
            return mean, permutations


def _matching(values: Values, mean: Values, symmetry: SymmetryGroup) -> Matching:
    return Matching(symmetry, values, {site: value[0] for site, value in mean.items()})


def _flat(
    values: Values, symmetry: SymmetryGroup, what: str
) -> tuple[dict[str, Tensor], torch.Size]:
    """The symmetry's sites with one batch dimension, and the batch dimensions that they had."""
    require_values(values, what, symmetry.sites)
    groups = symmetry.groups
    if not groups:
        raise ValueError("the symmetry has no group, so there is nothing to align")
    flat: dict[str, Tensor] = {}
    batches: dict[str, torch.Size] = {}
    for group in groups:
        for site in symmetry.spec[group]:
            if site not in values:
                raise ValueError(
                    f"{what} has no site '{site}', which group '{group}' permutes; it has "
                    f"{list(values)}: add the site, or leave the group out with symmetry.subset()"
                )
            value, shape = values[site], symmetry.site_shape(site)
            if value.shape[max(value.dim() - len(shape), 0) :] != shape:
                raise ValueError(
                    f"group '{group}', site '{site}' of {what}: the shape {tuple(value.shape)} "
                    f"does not end in {shape}, the site's shape in the model"
                )
            if not value.isfinite().all():
                raise ValueError(f"site '{site}' of {what} has values that are not finite")
            batches[site] = value.shape[: value.dim() - len(shape)]
            flat[site] = value.reshape(-1, *shape)
    first = next(iter(batches))
    for site, batch in batches.items():
        if batch != batches[first]:
            raise ValueError(
                f"the leading dimensions of {what} differ: {tuple(batches[first])} at site "
                f"'{first}', but {tuple(batch)} at site '{site}'"
            )
    if not batches[first].numel():
        raise ValueError(f"{what} has no draws: its leading dimensions are {tuple(batches[first])}")
    return flat, batches[first]


def _unflat(values: Values, batch: torch.Size) -> dict[str, Tensor]:
    return {name: value.reshape(*batch, *value.shape[1:]) for name, value in values.items()}
