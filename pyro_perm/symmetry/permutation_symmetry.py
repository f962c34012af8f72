"""The permutation group of a model and its action on the model's latent sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_perm.symmetry import elements, formats
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import SiteShape, bound_actions, site_shapes
from pyro_perm.symmetry.elements import unit_of

Permutations = Mapping[str, Tensor]
AxisLike = int | Axis | Sequence["int | Axis"]


class PermutationSymmetry:
    """A product of symmetric groups, each permuting the units along some axes of some sites.

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
    :meth:`apply` returns for them.

    Group sizes are read off the model, at the first call of a guide, a loss or :meth:`verify`
    that uses the symmetry; give ``shapes`` to have them without a model.

    :param spec: group name -> site name -> axis. An axis is an int in the site's event shape
        (negative counts from the right) or an :class:`Axis`; a group that permutes several axes of
        one site (a recurrent weight) gets a sequence of them.
    :param shapes: optional event shape of every site in the spec.
    :param reasons: for axes of latent sites that no group permutes, such as ``"fc1.weight[-1]"``,
        why that is so; :func:`find_symmetry` knows.
    :raises ValueError: if a group is empty, or the spec does not fit the shapes.
    """

    def __init__(
        self,
        spec: Mapping[str, Mapping[str, AxisLike]],
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        self.spec: dict[str, dict[str, tuple[Axis, ...]]] = {
            group: {site: _as_axes(group, site, axes) for site, axes in sites.items()}
            for group, sites in spec.items()
        }
        for group, sites in self.spec.items():
            if not sites:
                raise ValueError(f"group '{group}' permutes no site: give it a {{site: axis}}")
        self.reasons: dict[str, str] = dict(reasons or {})
        self.signed_groups: tuple[str, ...] = tuple(
            group
            for group, sites in self.spec.items()
            if any(axis.sign for axes in sites.values() for axis in axes)
        )
        self._sites: dict[str, SiteShape] | None = None
        self._groups: dict[str, int] = {}
        self._actions: dict[str, list[tuple[str, Axis]]] = {}
        if shapes is not None:
            self._bind({site: SiteShape(tuple(s), len(s)) for site, s in shapes.items()})

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
            symmetry._bind(shapes)
        return symmetry

    def to_json(self) -> str:
        """The groups, the sites' shapes where they are known, and the reasons, as JSON."""
        return formats.to_json(self.spec, self._sites, self.reasons)

    @property
    def axes_to_perm(self) -> dict[str, tuple[str | None, ...]]:
        """The git-re-basin dictionary of this symmetry, without sites that nothing permutes.

        :raises ValueError: before the symmetry has met a model, or if an axis is structured or
            has several groups, which such dictionaries cannot express.
        """
        return formats.axes_to_perm(self._require_bound(), self._actions)

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
        symmetry = PermutationSymmetry(spec, reasons=self.reasons | left_out)
        if self._sites is not None:
            symmetry._bind(self._sites)
        return symmetry

    def summary(self) -> str:
        """A table of the groups: sizes, ``log n!`` in nats and axes, and the reasons.

        The order of a group that flips signs is ``log n! 2^n``; a sign marks the axes that flip.

        :raises ValueError: before the symmetry has met a model.
        """
        return formats.summary(self.spec, self.groups, self.log_orders, self.reasons)

    def __repr__(self) -> str:
        lines = [
            f"    {group!r}: {formats.described(sites)}," for group, sites in self.spec.items()
        ]
        return "\n".join(["PermutationSymmetry({", *lines, "})"])

    def __bool__(self) -> bool:
        """Whether there is a group at all."""
        return bool(self.spec)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that some group permutes."""
        return tuple(dict.fromkeys(site for sites in self.spec.values() for site in sites))

    @property
    def groups(self) -> dict[str, int]:
        """Number of units of each group.

        :raises ValueError: before the symmetry has met a model.
        """
        self._require_bound()
        return dict(self._groups)

    @property
    def log_order(self) -> float:
        """``log |G| = sum of log n!`` over the groups, in nats: the most that symmetrization gains.

        :raises ValueError: before the symmetry has met a model.
        """
        return sum(self.log_orders.values())

    @property
    def log_orders(self) -> dict[str, float]:
        """``log n!`` of each group, or ``log n! 2^n`` if it flips signs, in nats.

        :raises ValueError: before the symmetry has met a model.
        """
        return {
            group: elements.log_order(size, signed=group in self.signed_groups)
            for group, size in self.groups.items()
        }

    @property
    def is_bound(self) -> bool:
        """Whether the symmetry has met a model, so that its sizes are known."""
        return self._sites is not None

    def bind(self, trace: Any) -> None:
        """Take the group sizes from a trace of the model; later traces must agree with them.

        :param trace: a Pyro trace of the model, outside of any particle plate.
        :raises ValueError: if the spec names a site that the model does not sample, or an axis
            that does not exist, or sizes that contradict each other.
        """
        self.bind_shapes(site_shapes(self.spec, trace))

    def bind_shapes(self, shapes: Mapping[str, SiteShape]) -> None:
        """Take the group sizes from the shapes of the spec's sites, as :meth:`bind` does.

        :param shapes: site -> shape of its value.
        :raises ValueError: for an axis that does not exist, or sizes that contradict each other or
            those that the symmetry met before.
        """
        if self._sites is not None and shapes != self._sites:
            changed = next(site for site in shapes if shapes[site] != self._sites[site])
            raise ValueError(
                f"site '{changed}' has shape {shapes[changed].shape}, but the symmetry met it with "
                f"shape {self._sites[changed].shape}: build a PermutationSymmetry for each model"
            )
        self._bind(shapes)

    def site_shape(self, site: str) -> tuple[int, ...]:
        """Shape of a site's value, plates included."""
        return self._require_bound()[site].shape

    def site_rank(self, site: str) -> int:
        """Number of dimensions of a site's value, plates included."""
        return len(self._require_bound()[site].shape)

    def site_plates(self, site: str) -> int:
        """Number of the model's plate dimensions in a site's value."""
        shape = self._require_bound()[site]
        return len(shape.shape) - shape.event_dim

    def is_simplex(self, site: str) -> bool:
        """Whether a site holds probability vectors, as a Dirichlet does."""
        return self._require_bound()[site].is_simplex

    def actions_on(self, site: str) -> list[tuple[str, Axis]]:
        """The groups that permute a site, each with an axis; dimensions count from the right."""
        self._require_bound()
        return self._actions.get(site, [])

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Draw uniformly from the group.

        :param sample_shape: shape of the batch of independent elements.
        :returns: group -> permutation, shape ``(*sample_shape, n)``.
        :raises ValueError: before the symmetry has met a model.
        """
        return {
            group: elements.sample(
                sample_shape,
                size,
                signed=group in self.signed_groups,
                device=device,
                generator=generator,
            )
            for group, size in self.groups.items()
        }

    def generators(self) -> Iterator[tuple[str, Tensor]]:
        """A transposition and a cycle for each group, and the flip of a unit if it flips signs.

        Together they generate the whole group.

        :returns: pairs of a group and one of its permutations, shape ``(n,)``.
        :raises ValueError: before the symmetry has met a model.
        """
        for group, size in self.groups.items():
            signed = group in self.signed_groups
            for permutation in elements.generators(size, signed=signed):
                yield group, permutation

    def apply(self, permutations: Permutations, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Act on values, or on anything of the sites' shapes, such as locs and scales.

        Batch dimensions on the left of permutations and values broadcast against each other.
        Groups without a permutation are left alone, and so are sites that no group permutes.

        :param permutations: group -> permutation, shape ``(*batch, n)``.
        :param values: site -> tensor, shape ``(*batch, *site shape)``. A symmetry that has not met
            a model takes the whole shape as the site's.
        :returns: site -> tensor, with unit ``i`` taken from unit ``permutation[i]``.
        :raises ValueError: if a permutation belongs to no group, does not fit its axis, or has
            entries that are no unit's number.
        """
        for group in permutations:
            self._require_group(group)
        return {
            site: self._apply_to_site(site, permutations, value) for site, value in values.items()
        }

    @staticmethod
    def inverse(permutations: Permutations) -> dict[str, Tensor]:
        """The element that undoes another."""
        return {group: elements.inverse(p) for group, p in permutations.items()}

    @staticmethod
    def compose(first: Permutations, second: Permutations) -> dict[str, Tensor]:
        """The element that acts like ``second``, then ``first``: ``(first second) . w``.

        :raises ValueError: if the two do not permute the same groups.
        """
        if first.keys() != second.keys():
            raise ValueError(f"cannot compose groups {list(first)} with groups {list(second)}")
        return {group: elements.compose(p, second[group]) for group, p in first.items()}

    def verify(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Check numerically that the model's log joint does not change under the group.

        :param model: a Pyro model, called with ``*args`` and ``**kwargs``.
        :raises ValueError: if the spec does not fit the model.
        :raises SymmetryVerificationError: if permuting a group changes the log joint.
        """
        from pyro_perm.verification import verify

        verify(self, model, *args, **kwargs)

    def _apply_to_site(self, site: str, permutations: Permutations, value: Tensor) -> Tensor:
        for group, axis in self._actions_for(site, value):
            if group not in permutations:
                continue
            permutation, size = (
                permutations[group].to(value.device),
                axis.size(value.shape[axis.dim]),
            )
            if size != permutation.shape[-1]:
                raise ValueError(
                    f"group '{group}', site '{site}': axis {axis} has {size} units, but the "
                    f"permutation has {permutation.shape[-1]}"
                )
            rank = self.site_rank(site) if self.is_bound else value.dim()
            if group in self.signed_groups and not axis.sign:
                permutation = unit_of(permutation)
            try:
                value = axis.permuted(value, permutation, rank)
            except (IndexError, RuntimeError):
                _require_entries(group, permutation, -size if axis.sign else 0, size - 1)
                raise
        return value

    def _actions_for(self, site: str, value: Tensor) -> list[tuple[str, Axis]]:
        if self.is_bound:
            return self.actions_on(site)
        shape = tuple(value.shape)
        return [
            (group, axis.resolve(shape, len(shape)))
            for group, sites in self.spec.items()
            for axis in sites.get(site, ())
        ]

    def _bind(self, shapes: Mapping[str, SiteShape]) -> None:
        missing = [site for site in self.sites if site not in shapes]
        if missing:
            raise ValueError(f"shapes has no entry for site '{missing[0]}' of the spec")
        self._groups, self._actions = bound_actions(self.spec, shapes)
        self._sites = {site: shapes[site] for site in self.sites}

    def _require_group(self, group: str) -> None:
        if group not in self.spec:
            raise ValueError(f"no group is called '{group}'; there are {list(self.spec)}")

    def _require_bound(self) -> dict[str, SiteShape]:
        if self._sites is None:
            raise ValueError(
                "the group sizes are not known yet: call symmetry.verify(model, *args), run the "
                "guide once, or pass shapes={site: event shape} to PermutationSymmetry"
            )
        return self._sites


def _as_axes(group: str, site: str, axes: AxisLike) -> tuple[Axis, ...]:
    each = axes if isinstance(axes, Sequence) and not isinstance(axes, str) else (axes,)
    for axis in each:
        if not isinstance(axis, int | Axis):
            raise TypeError(
                f"group '{group}', site '{site}': an axis is an int or an Axis, but is {axis!r}"
            )
    return tuple(axis if isinstance(axis, Axis) else Axis(axis) for axis in each)


def _require_entries(group: str, permutation: Tensor, first: int, last: int) -> None:
    low, high = (bound.item() for bound in permutation.aminmax())
    if low < first or high > last:
        raise ValueError(
            f"group '{group}': the entries of a permutation lie between {first} and {last} here, "
            f"but this one has some from {low} to {high}: number the units from 0"
        )
