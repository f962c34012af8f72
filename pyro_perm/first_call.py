"""What is settled once: symmetry, estimator, and whether units start apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from pyro_perm.density.base_guides import read_density
from pyro_perm.density.factorized import require_tractable_supports
from pyro_perm.discovery import find_symmetry
from pyro_perm.estimators import Bethe, Estimator
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.program.call import Call
from pyro_perm.program.isolation import isolation
from pyro_perm.program.log_prob_shapes import LogProbShapes
from pyro_perm.program.trace import prior_trace
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.symmetry.formats import explanations
from pyro_perm.symmetry.scale_selection import scales_left_out


def as_estimator(estimator: Estimator | None) -> Estimator:
    """The given estimator, or the default, for one guide or loss.

    :raises TypeError: if it is no estimator.
    """
    if estimator is None:
        return Bethe()
    if not isinstance(estimator, Estimator):
        raise TypeError(
            f"estimator must be an Estimator such as Bethe() or InfoNCE(num_permutations=32), but "
            f"is {estimator!r}"
        )
    return estimator.for_one_guide()


def as_symmetry(symmetry: PermutationSymmetry | None) -> PermutationSymmetry | None:
    """The given symmetry, or None to discover it.

    :raises TypeError: if it is neither.
    """
    if not isinstance(symmetry, PermutationSymmetry | None):
        raise TypeError(
            f"symmetry must be a PermutationSymmetry or None, but is a {type(symmetry).__name__}"
        )
    return symmetry


def verified_symmetry(symmetry: PermutationSymmetry | None, model: Call) -> PermutationSymmetry:
    """The given symmetry, or the one found in the model, verified on the model and held to it.

    :raises ValueError: if the symmetry does not fit the model, or none is found; as ``Trace_ELBO``,
        if a site is batched along other dimensions than its plates'.
    :raises TypeError: if a symmetric site's support is no product of intervals and no simplex.
    """
    shapes = LogProbShapes()  # Validation is off inside of the isolation.
    with isolation(model.program) as writes, writes, shapes:
        trace = prior_trace(model)
    if symmetry is None:
        symmetry = find_symmetry(model.program, *model.args, **model.kwargs)
    else:
        symmetry.verify(model.program, *model.args, **model.kwargs)
    if not symmetry.groups:
        reasons = "".join(f"\n  {why}" for why in explanations(symmetry.reasons))
        raise ValueError(
            "found no permutation symmetry in the model: give it as "
            "symmetry=PermutationSymmetry({group: {site: axis}}), or use the base guide as it is."
            + reasons
        )
    summable = symmetry.with_summable_scales()
    for group, why in scales_left_out(symmetry.group).items():
        warnings.warn(
            f"the units of group '{group}' are not rescaled: {why}. That is a symmetry, too, and "
            "gains less; to choose another one, leave scale= out of the other group's axes",
            stacklevel=2,
        )
    require_tractable_supports(trace, summable.group)
    return summable.snapshot()


def is_group_of(symmetry: PermutationSymmetry, group: SymmetryGroup) -> bool:
    """Whether a group is a symmetry's, whatever the order of its factors.

    Scales that cannot be summed over do not count.
    """
    own = PermutationSymmetry(symmetry.spec)
    try:
        own.bind_shapes(dict(group.shapes))
    except (KeyError, ValueError):  # It has other sites, or does not fit them.
        return False
    return own.with_summable_scales().group.spec == group.spec


def warn_if_coinciding(sites: Mapping[str, Any], symmetry: SymmetryGroup) -> None:
    """Warn where all units of a group have the same factor, a saddle of the objective."""
    groups = read_density(sites, symmetry).coinciding_groups()
    if groups:
        warnings.warn(
            f"all units of group {', '.join(map(repr, groups))} have the same variational factor. "
            "This is a saddle of the symmetrized objective, from which training breaks away only "
            "slowly; start the units apart, e.g. AutoNormal(model, init_loc_fn=init_to_fan_in). "
            "That leaves sites on a constrained support, such as positive ones, at one value: a "
            "group of these alone starts apart by init_loc_fn=pyro.infer.autoguide.init_to_sample",
            stacklevel=2,
        )


@contextmanager
def watch_for_shared_parameters(guide: Any) -> Iterator[None]:
    """Warn if a guide's first call finds values that another guide was trained to.

    Pyro's parameters are global, by names that come from a guide's class: a second guide of a class
    starts where the first one is, and moves it. Values that nobody has trained in this session,
    such as those of a param store that was loaded, are meant to be found.

    :param guide: what is called in this context; only an autoguide that has not run is watched.
    """
    is_new = isinstance(guide, AutoGuide) and guide.prototype_trace is None
    if not is_new or pyro.settings.get("module_local_params"):
        yield
        return
    store = pyro.get_param_store()
    trained = {name for name, value in store.named_parameters() if value.grad is not None}
    with poutine.trace(param_only=True) as tracer:
        yield
    shared = [name for name in tracer.trace.nodes if name in trained]
    if shared:
        warnings.warn(
            f"this {type(guide).__name__} starts from values that another guide was trained to, "
            "and shares them with it from now on: Pyro's param store has them under the same "
            f"names, such as '{shared[0]}'. Call pyro.clear_param_store() before, or set "
            "pyro.settings.set(module_local_params=True); to go on from a trained guide, wrap that "
            "one itself",
            stacklevel=4,
        )
