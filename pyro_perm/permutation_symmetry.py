"""What a user writes of a model's symmetry, and learns about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_perm.symmetry import formats
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import SiteShape, site_shapes
from pyro_perm.symmetry.elements import AnyElement, Elements
from pyro_perm.symmetry.factor import Factor, motion_of, num_units
from pyro_perm.symmetry.group import SymmetryGroup, move, require_sizes
from pyro_perm.symmetry.scale_selection import scales_left_out
from pyro_perm.symmetry.spec import AxisLike, Spec, describe, read_spec, without_scales
from pyro_perm.symmetry.values import require_values, with_values
from pyro_perm.verification import verify


class PermutationSymmetry:
    r"""A product of symmetric groups, each permuting the units along some axes of some sites.

    The group is ``G = S_n1 x S_n2 x ...`` (Gelberg et al. 2024, Section 3). An element ``g`` is a
    dictionary with one permutation a group; it acts on latent values by indexing, so that unit
    ``i`` of ``apply(g, w)`` is unit ``g[i]`` of ``w``. Usage:

    >>> import torch
    >>> import pyro_perm as pp
    >>> symmetry = pp.PermutationSymmetry(
    ...     {"hidden": {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}},
    ...     shapes={"fc1.weight": (3, 2), "fc1.bias": (3,), "fc2.weight": (1, 3)},
    ... )
    >>> symmetry.groups
    {'hidden': 3}
    >>> g = {"hidden": torch.tensor([2, 0, 1])}
    >>> symmetry.apply(g, {"fc1.bias": torch.tensor([1.0, 2.0, 3.0])})
    {'fc1.bias': tensor([3., 1., 2.])}

    A group with an axis ``Axis(dim, sign=True)`` is hyperoctahedral: it permutes its units and
    flips their signs, as those of odd activations such as ``tanh`` may. In its permutations the
    entry ``~j`` stands for minus unit ``j``; scales do not flip, so take the absolute value of what
    :meth:`apply` returns for them. Along ``Axis(dim, scale=1)`` and ``Axis(dim, scale=-1)`` a group
    rescales its units, as those of rectifiers may, and its elements are :class:`Element`\ s, with
    the logarithms of the scales beside the permutation. ``permute=False`` leaves units in place.

    Group sizes are read off the model, at the first call of a guide, a loss or :meth:`verify`
    that uses the symmetry. One symmetry serves models of several widths: it tells the sizes of the
    last one, and the ``symmetry`` of each guide those of its own. Give ``shapes`` to have them
    without a model; another model is then refused. Symmetries of the same axes are equal.

    :param spec: group name -> site name -> axis. An axis is an int in the site's event shape
        (negative counts from the right) or an :class:`Axis`; a group that permutes several axes of
        one site (a recurrent weight) gets a sequence of them.
    :param shapes: optional event shape of every site in the spec.
    :param reasons: for axes of latent sites that no group permutes, such as ``"fc1.weight[-1]"``,
        why that is so; :func:`find_symmetry` knows.
    :raises ValueError: if a group is empty, or the spec does not fit the shapes.
    :raises TypeError: if the spec is of another form.
    """

    def __init__(
        self,
        spec: Mapping[str, Mapping[str, AxisLike]],
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        self.spec = read_spec(spec)
        self.reasons: dict[str, str] = dict(reasons or {})
        self._group: SymmetryGroup | None = None
        self._is_settled = False
        if shapes is not None:
            self._settle({site: SiteShape(tuple(s), len(s)) for site, s in shapes.items()})

    @classmethod
    def from_axes_to_perm(
        cls, axes_to_perm: Mapping[str, Sequence[str | None]]
    ) -> PermutationSymmetry:
        """The symmetry that a git-re-basin dictionary describes (Ainsworth et al. 2023).

        :param axes_to_perm: for each site, the group along each dimension of its event, or None,
            as in ``{"fc1.weight": ("P0", None), "fc1.bias": ("P0",), "fc2.weight": (None, "P0")}``.
        """
        return cls(formats.spec_from_axes_to_perm(axes_to_perm))

    @classmethod
    def from_json(cls, text: str) -> PermutationSymmetry:
        """The symmetry that :meth:`to_json` wrote.

        :raises ValueError: if the text is something else.
        """
        spec, shapes, reasons = formats.from_json(text)
        symmetry = cls(spec, reasons=reasons)
        if shapes is not None:
            symmetry._group = SymmetryGroup.of(symmetry.spec, shapes)
        return symmetry

    def to_json(self) -> str:
        """The groups, the sites' shapes where they are known, and the reasons, as JSON."""
        shapes = None if self._group is None else dict(self._group.shapes)
        return formats.to_json(self.spec, shapes, self.reasons)

    @property
    def axes_to_perm(self) -> dict[str, tuple[str | None, ...]]:
        """The git-re-basin dictionary of this symmetry, without sites that nothing permutes.

        :raises ValueError: before the symmetry has met a model, or if an axis is structured or
            has several groups, which such dictionaries cannot express.
        """
        return formats.axes_to_perm(self.group)

    def subset(
        self,
        *,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
    ) -> PermutationSymmetry:
        """The symmetry with some of its groups only: fewer units to sum over.

        :param include: names of the groups to keep; by default all of them.
        :param exclude: names of groups to leave out.
        :raises ValueError: if a name is not a group's.
        """
        kept, dropped = set(self.spec if include is None else include), set(exclude)
        for group in kept | dropped:
            self._require_group(group)
        spec = {g: sites for g, sites in self.spec.items() if g in kept - dropped}
        left_out = {
            f"{site}[{axis}]": f"group '{group}' was left out by subset()"
            for group in self.spec.keys() - spec.keys()
            for site, axes in self.spec[group].items()
            for axis in axes
        }
        return self._part(spec, left_out)

    def with_summable_scales(self) -> PermutationSymmetry:
        """The symmetry with the scales of such groups only whose densities can be integrated.

        Of two groups that share a site, as layers that follow on each other do, one is rescaled:
        those are taken that have the most units. The reasons say what was left out.

        :raises ValueError: before the symmetry has met a model.
        """
        left_out = scales_left_out(self.group)
        spec = {g: without_scales(s) if g in left_out else s for g, s in self.spec.items()}
        reasons = {f"scale of {group}": why for group, why in left_out.items()}
        return self._part({group: sites for group, sites in spec.items() if sites}, reasons)

    def summary(self) -> str:
        """A table of the groups: sizes, ``log n!`` in nats and axes, and the reasons.

        The order of a group that flips signs is ``log n! 2^n``, that of one that rescales is
        infinite; marks show along which axes, and at which power. Where units stay in their places,
        the table says so.

        :raises ValueError: before the symmetry has met a model.
        """
        return formats.summary(self.group, self.spec, self.reasons)

    def __repr__(self) -> str:
        lines = [f"    {group!r}: {describe(sites)}," for group, sites in self.spec.items()]
        return "\n".join(["PermutationSymmetry({", *lines, "})"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PermutationSymmetry):
            return NotImplemented
        return self.spec == other.spec

    def __hash__(self) -> int:
        groups = ((group, frozenset(sites.items())) for group, sites in self.spec.items())
        return hash(frozenset(groups))

    def __bool__(self) -> bool:
        """Whether there is a group at all."""
        return bool(self.spec)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that some group permutes."""
        return tuple(dict.fromkeys(site for sites in self.spec.values() for site in sites))

    @cached_property
    def signed_groups(self) -> tuple[str, ...]:
        """Names of the groups that flip the signs of their units."""
        axes_of = {g: [a for axes in s.values() for a in axes] for g, s in self.spec.items()}
        return tuple(group for group, axes in axes_of.items() if any(axis.sign for axis in axes))

    @property
    def group(self) -> SymmetryGroup:
        """The group on the sites of the model that the symmetry has met.

        :raises ValueError: before the symmetry has met a model.
        """
        if self._group is None:
            raise ValueError(
                "the group sizes are not known yet: call symmetry.verify(model, *args), run the "
                "guide once, or pass shapes={site: event shape} to PermutationSymmetry"
            )
        return self._group

    @property
    def groups(self) -> dict[str, int]:
        """Number of units of each group.

        :raises ValueError: before the symmetry has met a model.
        """
        return dict(self.group.groups)

    @property
    def log_order(self) -> float:
        """``log |G| = sum of log n!`` over the groups, in nats: the most that symmetrization gains.

        :raises ValueError: before the symmetry has met a model.
        """
        return self.group.log_order

    @property
    def log_orders(self) -> dict[str, float]:
        """``log n!`` of each group, or ``log n! 2^n`` if it flips signs, in nats.

        Infinite for one that rescales its units.

        :raises ValueError: before the symmetry has met a model.
        """
        return dict(self.group.log_orders)

    @property
    def is_bound(self) -> bool:
        """Whether the symmetry has met a model, so that its sizes are known."""
        return self._group is not None

    def bind(self, trace: Any) -> SymmetryGroup:
        """The group on the sites of a trace of the model, whose sizes the symmetry tells from now.

        :param trace: a Pyro trace of the model, outside of any particle plate.
        :raises ValueError: if the spec names a site that the model does not sample, or an axis
            that does not exist, or sizes that contradict each other or the ``shapes`` given.
        """
        return self.bind_shapes(site_shapes(self.spec, trace))

    def bind_shapes(self, shapes: Mapping[str, SiteShape]) -> SymmetryGroup:
        """The group on sites of these shapes, as :meth:`bind` finds them.

        :param shapes: site -> shape of its value.
        :raises ValueError: for an axis that does not exist, or sizes that contradict each other or
            the ``shapes`` given.
        """
        if self._is_settled:
            for site, given in self.group.shapes:
                if (given.shape, given.event_dim) != (shapes[site].shape, shapes[site].event_dim):
                    raise ValueError(
                        f"site '{site}' has shape {shapes[site].shape}, but the symmetry was given "
                        f"shape {given.shape}: leave out shapes=, or write a PermutationSymmetry "
                        "for each model"
                    )
        self._group = SymmetryGroup.of(self.spec, shapes)
        return self._group

    def snapshot(self) -> PermutationSymmetry:
        """The same symmetry, held to the model that it has met last.

        :raises ValueError: before the symmetry has met a model.
        """
        symmetry = PermutationSymmetry(self.spec, reasons=self.reasons)
        symmetry._group, symmetry._is_settled = self.group, True
        return symmetry

    def site_shape(self, site: str) -> tuple[int, ...]:
        """Shape of a site's value, plates included."""
        return self.group.site_shape(site)

    def site_rank(self, site: str) -> int:
        """Number of dimensions of a site's value, plates included."""
        return self.group.site_rank(site)

    def site_plates(self, site: str) -> int:
        """Number of the model's plate dimensions in a site's value."""
        return self.group.site_plates(site)

    def is_simplex(self, site: str) -> bool:
        """Whether a site holds probability vectors, as a Dirichlet does."""
        return self.group.is_simplex(site)

    def actions_on(self, site: str) -> list[tuple[str, Axis]]:
        """The groups that permute a site, each with an axis; dimensions count from the right."""
        return list(self.group.actions_on(site))

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, AnyElement]:
        """Draw uniformly from the group; scales are between 1/4 and 4.

        :param sample_shape: shape of the batch of independent elements.
        :returns: group -> permutation or :class:`Element`, shape ``(*sample_shape, n)``.
        :raises ValueError: before the symmetry has met a model.
        :raises TypeError: if ``sample_shape`` is no shape, or ``generator`` none of torch's.
        """
        return self.group.sample(sample_shape, device=device, generator=generator)

    def generators(self) -> Iterator[tuple[str, AnyElement]]:
        """A transposition and a cycle for each group, and the flip of a unit if it flips signs.

        Together they generate the whole group.

        :returns: pairs of a group and one of its elements, shape ``(n,)``.
        :raises ValueError: before the symmetry has met a model.
        """
        return self.group.generators()

    def apply(self, permutations: Elements, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Act on values, or on anything of the sites' shapes, such as locs and scales.

        Batch dimensions on the left of permutations and values broadcast against each other.
        Groups without a permutation are left alone, and so are sites that no group permutes.

        :param permutations: group -> permutation or :class:`Element`, shape ``(*batch, n)``.
        :param values: site -> tensor, shape ``(*batch, *site shape)``. A symmetry that has not met
            a model takes the whole shape as the site's.
        :returns: site -> tensor, with unit ``i`` taken from unit ``permutation[i]``.
        :raises ValueError: if an element is of no group, does not fit its axis, or is no
            permutation of the units; if only names of values differ from the sites'.
        :raises TypeError: if elements or values are no tensors.
        """
        require_values(values, "values", self.sites)
        motions, sizes, moved = {}, {}, {}
        for group, element in permutations.items():
            self._require_group(group)
            sizes[group] = num_units(group, element)
            motions[group] = motion_of(self._factor(group, sizes[group]), element)
        for site, value in values.items():
            acting = self._actions_for(site, tuple(value.shape))
            require_sizes(site, acting, sizes, tuple(value.shape))
            rank = value.dim() if self._group is None or not acting else self.site_rank(site)
            moved[site] = move(acting, motions, value, rank)
        return with_values(values, moved)

    @staticmethod
    def inverse(permutations: Elements) -> dict[str, AnyElement]:
        """The element that undoes another."""
        return SymmetryGroup.inverse(permutations)

    @staticmethod
    def compose(first: Elements, second: Elements) -> dict[str, AnyElement]:
        """The element that acts like ``second``, then ``first``: ``(first second) . w``.

        :raises ValueError: if the two do not permute the same groups.
        """
        return SymmetryGroup.compose(first, second)

    def verify(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Check numerically that the model's log joint does not change under the group.

        :param model: a Pyro model, called with ``*args`` and ``**kwargs``.
        :raises ValueError: if the spec does not fit the model.
        :raises SymmetryVerificationError: if permuting a group changes the log joint.
        """
        verify(self, model, *args, **kwargs)

    def _factor(self, group: str, size: int) -> Factor:
        """A group, with as many units as one of its elements where the symmetry knows no sizes."""
        if self._group is not None:
            return self._group.factor(group)
        axes = ((site, axis) for site, axes in self.spec[group].items() for axis in axes)
        return Factor(group, size, tuple(axes))

    def _actions_for(self, site: str, shape: tuple[int, ...]) -> list[tuple[str, Axis]]:
        if self._group is not None:
            return self.actions_on(site)
        return [
            (group, axis.resolve(shape, len(shape)))
            for group, sites in self.spec.items()
            for axis in sites.get(site, ())
        ]

    def _settle(self, shapes: Mapping[str, SiteShape]) -> SymmetryGroup:
        missing = [site for site in self.sites if site not in shapes]
        if missing:
            raise ValueError(f"shapes has no entry for site '{missing[0]}' of the spec")
        self._group, self._is_settled = SymmetryGroup.of(self.spec, shapes), True
        return self._group

    def _part(self, spec: Spec, left_out: dict[str, str]) -> PermutationSymmetry:
        """The symmetry with another spec on the same sites."""
        symmetry = PermutationSymmetry(spec, reasons=self.reasons | left_out)
        if self._group is not None:
            symmetry._group = SymmetryGroup.of(spec, dict(self._group.shapes))
            symmetry._is_settled = self._is_settled
        return symmetry

    def _require_group(self, group: str) -> None:
        if group not in self.spec:
            raise ValueError(f"no group is called '{group}'; there are {list(self.spec)}")
