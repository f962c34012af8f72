"""Discovering a model's permutation symmetry."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_perm.discovery.gradings.scales import with_scales
from pyro_perm.discovery.gradings.signs import with_signs
from pyro_perm.discovery.permutations.algebra import freeze, tie
from pyro_perm.discovery.permutations.classes import colour_classes, common_classes
from pyro_perm.discovery.permutations.expressions import (
    Atom,
    Reason,
    atoms_of,
    is_frozen,
    resolve,
    why_fixed,
)
from pyro_perm.discovery.permutations.interpreter import Constant, Interpreter
from pyro_perm.discovery.permutations.opaque_priors import OpaquePrior, opaque_priors
from pyro_perm.discovery.permutations.structured_axes import (
    sites_along,
    sites_of_free_atoms,
)
from pyro_perm.discovery.recording.log_joint import LogJoint, record_log_joint
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.program.call import Call, refuse_shared_keywords
from pyro_perm.program.double_precision import DoublePrecision
from pyro_perm.program.opening import open_program
from pyro_perm.program.program import Program
from pyro_perm.program.scalable_priors import unscalable_sites
from pyro_perm.symmetry.axis import Axis
from pyro_perm.verification import confirm

Spec = dict[str, dict[str, tuple[Axis, ...]]]


@refuse_shared_keywords
def find_symmetry(
    model: Callable[..., Any],
    *args: Any,
    signs: bool = False,
    scales: bool = False,
    **kwargs: Any,
) -> PermutationSymmetry:
    """Read the permutation symmetry of a model off its log joint, and verify it.

    Usage:

    >>> import pyro, torch
    >>> from pyro.distributions import Normal
    >>> import pyro_perm as pp
    >>> def model(x, y):
    ...     w1 = pyro.sample("w1", Normal(0.0, 1.0).expand([20, 3]).to_event(2))
    ...     w2 = pyro.sample("w2", Normal(0.0, 1.0).expand([20]).to_event(1))
    ...     f = torch.tanh(x @ w1.T) @ w2
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("y", Normal(f, 0.1), obs=y)
    >>> symmetry = pp.find_symmetry(model, torch.randn(5, 3), torch.randn(5))
    >>> symmetry
    PermutationSymmetry({
        'P0': {'w1': -2, 'w2': -1},
    })
    >>> symmetry.reasons
    {'w1[-1]': 'tied to dim 1 of argument 0, which is not a latent site'}

    The model runs a few times, on data that should have the shapes used in training, observations
    included; its random state, parameters and buffers are left as they were. Its tensor operations
    tell which axes of which latent sites may be permuted together without changing the log joint,
    whatever the data and parameters are. What cannot be understood is left alone. If the model
    observes nothing, as a network without its likelihood, the tensors that it returns must not
    change either.

    :param model: a Pyro model, called with ``*args`` and ``**kwargs``.
    :param signs: whether to look for groups that also flip the signs of their units, as units with
        odd activations (``tanh``, ``sin``, none) do under priors symmetric about zero. ``reasons``
        tells for every group that does not why that is so.
    :param scales: whether to look for groups that also rescale their units, as rectifiers may be:
        incoming weights and biases times ``c > 0``, outgoing weights divided by it. The likelihood
        does not change, but the prior does. Units that cannot be permuted, since their priors are
        unequal or data tell them apart, form groups that only rescale (``Axis(permute=False)``).
        ``reasons`` tells for every other group without scales why that is so.
    :returns: the group, which has met the model. It is falsy if nothing can be permuted; its
        ``reasons`` tell for every axis of a latent site that is not permuted why that is so.
    :raises SymmetryVerificationError: if the numerical check contradicts the analysis.
    """
    with open_program(Call(model, args, kwargs)) as program:
        joint = record_log_joint(program)
        opaque = opaque_priors(joint)
        interpreter = Interpreter(joint.graph)
        _freeze_excluded(interpreter, joint)
        interpreter.run([node for site, node in joint.factors.items() if site not in opaque])
        _tie_enumerated(interpreter, joint)
        priors = _opaque_priors(opaque, interpreter, joint, program)
        spec, reasons = _extract(interpreter, joint, priors)
        unscalable = unscalable_sites(program) if scales else {}
        with torch.device("cpu"):  # degrees have nothing to do with the model's device
            if signs:
                spec, why_unsigned = with_signs(joint, spec)
                reasons |= why_unsigned
            if scales:
                spec, why_unscaled = with_scales(joint, spec, unscalable)
                reasons |= why_unscaled
        spec = _under_all_names(spec, program.aliases)
    symmetry = PermutationSymmetry(spec, reasons=reasons)
    for warning in _warnings(joint):
        warnings.warn(warning, stacklevel=3)
    confirm(symmetry, model, *args, **kwargs)
    return symmetry


def _under_all_names(spec: Spec, aliases: Mapping[str, str]) -> Spec:
    """The spec, with the axes of every site under its other names too."""
    return {
        group: sites | {alias: sites[name] for alias, name in aliases.items() if name in sites}
        for group, sites in spec.items()
    }


def _warnings(joint: LogJoint) -> Iterator[str]:
    """What the user should know about the analysis."""
    if joint.factors.keys() <= joint.latents.keys():
        yield (
            "the model observes nothing and returns no tensor, so this is the symmetry of its "
            "prior alone; pass the observations too"
        )
    yield from joint.graph.warnings()


def _tie_enumerated(interpreter: Interpreter, joint: LogJoint) -> None:
    """Summing a variable out leaves the joint invariant if all factors permute it alike."""
    first: dict[int, Any] = {}
    for site, node in joint.factors.items():
        for dim in range(-len(node.shape), -joint.max_plate_nesting):
            if node.shape[dim] > 1:
                axis = interpreter.axes(node)[dim]
                why = Reason("tied to an enumerated variable", f"log_prob of site '{site}'")
                tie(first.setdefault(dim, axis), axis, why)


def _freeze_excluded(interpreter: Interpreter, joint: LogJoint) -> None:
    for latent in joint.latents.values():
        if latent.excluded is not None:
            for axis in interpreter.axes(latent.node):
                freeze(axis, Reason(latent.excluded, latent.source))


def _extract(
    interpreter: Interpreter, joint: LogJoint, priors: dict[str, OpaquePrior]
) -> tuple[Spec, dict[str, str]]:
    """The groups of the free atoms, and reasons for all axes without one."""
    spec: Spec = {}
    notes: dict[Atom, Reason] = {}
    axes = {name: interpreter.axes(latent.node) for name, latent in joint.latents.items()}
    for atom, its_sites in sites_of_free_atoms(axes).items():
        labels, source = _classes(atom, interpreter.constants, priors)
        sizes = torch.bincount(labels)
        if len(sizes) > 1:
            notes[atom] = _colour_reason(sizes, source)
        for label in range(len(sizes)):
            if sizes[label] > 1:
                members = (labels == label).nonzero().squeeze(1)
                spec[f"P{len(spec)}"] = sites_along(its_sites, atom, members)
        if not bool((sizes > 1).any()):
            freeze(atom, notes[atom])
    return spec, dict(_reasons(interpreter, joint, notes))


def _opaque_priors(
    sites: list[str], interpreter: Interpreter, joint: LogJoint, program: Program
) -> dict[str, OpaquePrior]:
    if not sites:
        return {}
    with DoublePrecision() as precision:
        factors = program.map_inputs(precision.double).run({}).factors
    return {
        site: OpaquePrior(
            factors[site], program.latents[site], interpreter.axes(joint.latents[site].node)
        )
        for site in sites
    }


def _classes(
    atom: Atom, constants: list[Constant], priors: dict[str, OpaquePrior]
) -> tuple[Tensor, str | None]:
    """Classes of units that nothing tells apart, and where the model first tells some apart."""
    labels, separating = colour_classes(atom, constants)
    sources = [constant.source for constant in separating]
    for site, prior in priors.items():
        found = prior.classes(atom)
        if found is not None and int(found.max()) > 0:
            labels = common_classes(labels, found)
            sources.append(f"log_prob of site '{site}'")
    return labels, next(iter(sources), None)


def _colour_reason(sizes: Tensor, source: str | None) -> Reason:
    largest = ", ".join(map(str, sorted(sizes.tolist(), reverse=True)[:12]))
    more = ", ..." if len(sizes) > 12 else ""
    return Reason(
        f"the model tells its units apart; the {int(sizes.sum())} units fall into classes of size "
        f"{largest}{more}",
        source,
    )


def _reasons(
    interpreter: Interpreter, joint: LogJoint, notes: dict[Atom, Reason]
) -> Iterator[tuple[str, str]]:
    for name, latent in joint.latents.items():
        axes = interpreter.axes(latent.node)
        for dim, axis in enumerate(axes):
            if latent.node.shape[dim] < 2:
                continue
            noted = [notes[atom] for atom in atoms_of(resolve(axis)) if atom in notes]
            reason = why_fixed(axis) if is_frozen(axis) else next(iter(noted), None)
            if is_frozen(axis) and reason is None:
                reason = Reason("every unit has a place of its own")
            if reason is not None:
                yield f"{name}[{dim - len(axes)}]", str(reason)
