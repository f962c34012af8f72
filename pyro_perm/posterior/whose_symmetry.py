"""Which symmetry belongs to a guide: its own, or the one that the caller brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoGuide

from pyro_perm.density.base_guides import require_symmetrizable
from pyro_perm.first_call import is_group_of, verified_symmetry
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.independence import GuideProbe
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.program.call import Call, model_of
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.sampling import set_up
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.trace_sites import log_ratio_nodes


def symmetry_of(
    guide: Call, given: PermutationSymmetry | None, model: Callable[..., Any] | None = None
) -> SymmetryGroup:
    """The group that a guide is symmetrized over, or could be, known to fit the model.

    :param guide: any guide that the losses take.
    :param given: the symmetry that the caller brings.
    :param model: the model; None is an autoguide's own.
    :raises ValueError: if the guide brings another symmetry, or there is no model to verify on.
    :raises TypeError: if the guide cannot be symmetrized.
    """
    program = guide.program
    _require_guide(program)
    own = _own_symmetry(guide)
    if own is not None:
        return _require_same(own, given)
    if model is None and isinstance(program, AutoGuide):
        model = model_of(program)
    if model is not None:
        verified = verified_symmetry(given, replace(guide, program=model))
        return _require_independent(guide, verified.group)
    if given is not None and given.is_bound:
        return _require_independent(guide, given.group)
    raise ValueError(
        "the guide does not know its model (Pyro drops an autoguide's model when it is copied or "
        "pickled), so the symmetry has nothing to be verified on: give "
        "symmetry=find_symmetry(model, ...), or use symmetrized_elbo(model, guide, ...), whose "
        "result has the mutual information"
    )


def symmetry_if_any(
    posterior: Callable[..., Any] | MCMC, given: PermutationSymmetry | None, model: Call
) -> SymmetryGroup | None:
    """The group that a guide, or the posterior that MCMC draws, is known to have, if any.

    :raises ValueError: if the guide brings another symmetry, or the given one does not fit.
    """
    own = None
    if not isinstance(posterior, MCMC):
        own = _own_symmetry(replace(model, program=posterior))
    if own is not None:
        return _require_same(own, given)
    if given is not None:
        given.verify(model.program, *model.args, **model.kwargs)
    return None if given is None else given.group


def largest_symmetry(guides: Mapping[str, Any]) -> PermutationSymmetry | None:
    """The largest symmetry of some guides, for what all of them go by; None if there is none.

    It rescales most units, and of those that rescale as many its ``log |G|`` is the largest.

    :param guides: name -> guide, each called before.
    :raises ValueError: if there are several such, which do not do the same.
    """
    own = {name: g.symmetry for name, g in guides.items() if isinstance(g, AutoSymmetrized)}
    symmetries = {name: symmetry for name, symmetry in own.items() if symmetry is not None}
    if not symmetries:
        return None

    def size(guide: str) -> tuple[int, float]:
        group = symmetries[guide].group
        rescaled = sum(group.groups[name] for name in group.open_groups)
        return rescaled, round(group.log_compact_order, 6)

    most = max(map(size, symmetries))
    # The chain rule minds the order of a group's factors, and so must not be given that of guides.
    largest, *others = sorted(
        (name for name in symmetries if size(name) == most),
        key=lambda name: repr(symmetries[name].group),
    )
    for other in others:
        if action_of(symmetries[other].group) != action_of(symmetries[largest].group):
            raise ValueError(
                f"guides '{largest}' and '{other}' are symmetrized over groups of one size that "
                "are not the same: choose one of them as symmetry="
            )
    return symmetries[largest]


def action_of(group: SymmetryGroup) -> frozenset[Any]:
    """What a group does, whatever its factors are called and in whatever order they come."""
    return frozenset((factor.size, frozenset(factor.axes)) for factor in group.factors)


def _require_guide(program: Any) -> None:
    if not callable(program):
        raise TypeError(f"guide must be a guide, but is a {type(program).__name__}")
    require_symmetrizable(poutine.unwrap(program))


def _own_symmetry(guide: Call) -> SymmetryGroup | None:
    """The group over which a guide, or parts of it, is symmetrized already."""
    set_up(guide)
    if isinstance(guide.program, AutoSymmetrized):
        assert guide.program.symmetry is not None
        return guide.program.symmetry.group
    with poutine.block(), fixed_seed(), torch.no_grad():
        trace = poutine.trace(guide.program).get_trace(*guide.args, **guide.kwargs)
    own = [node["fn"].density.symmetry for node in log_ratio_nodes(trace.nodes).values()]
    return own[0] if len(own) == 1 else _product(own)


def _require_independent(guide: Call, group: SymmetryGroup) -> SymmetryGroup:
    """The group, if the guide draws its sites independently, as a symmetrized guide has checked."""
    GuideProbe(guide, group).require_independent_sites()
    return group


def _product(parts: Sequence[SymmetryGroup]) -> SymmetryGroup | None:
    """The product of groups that act on sites of their own."""
    if not parts:
        return None
    spec = {
        f"{part}_{group}": sites
        for part, symmetry in enumerate(parts)
        for group, sites in symmetry.spec.items()
    }
    return SymmetryGroup.of(spec, {k: v for symmetry in parts for k, v in symmetry.shapes})


def _require_same(own: SymmetryGroup, given: PermutationSymmetry | None) -> SymmetryGroup:
    if given is not None and not is_group_of(given, own):
        raise ValueError("the guide brings its own symmetry: leave out symmetry=")
    return own
