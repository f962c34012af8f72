"""Priors whose formula no rule can follow, such as a multivariate normal's: tested numerically.

A Cholesky factor hides that a covariance matrix treats some units alike. But a prior that depends
on nothing besides its own site can be asked: it allows to permute two units if swapping them never
changes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_perm.discovery.permutations.classes import classes_by_swapping
from pyro_perm.discovery.permutations.expressions import (
    Atom,
    AxisExpr,
    atoms_of,
    denotation,
    resolve,
)
from pyro_perm.discovery.permutations.rules import rule_for
from pyro_perm.discovery.recording.graph import Graph
from pyro_perm.discovery.recording.log_joint import LogJoint
from pyro_perm.program.double_precision import DoublePrecision
from pyro_perm.program.program import Factor, Latent

_NUM_POINTS = 2
_TOLERANCE = 1e-9
_MAX_UNITS = 128


@dataclass(frozen=True)
class OpaquePrior:
    """A prior to be tested numerically.

    Attributes:
        factor: the prior, in double precision.
        latent: its site.
        axes: one axis for each dimension of the value.
    """

    factor: Factor
    latent: Latent
    axes: tuple[AxisExpr, ...]

    def classes(self, atom: Atom) -> Tensor | None:
        """Classes of an atom's units that the prior does not tell apart.

        :returns: a class label for each unit, shape ``(size,)``, or None if no unit lies along the
            site's axes.
        """
        if not any(atom in atoms_of(resolve(axis)) for axis in self.axes):
            return None
        if atom.size > _MAX_UNITS:
            return torch.arange(atom.size, device="cpu")
        points = [self.latent.draw(torch.float64) for _ in range(_NUM_POINTS)]
        with DoublePrecision() as precision:
            values = precision.double(torch.stack(points))
            before = self._log_prob(values)

            def is_invariant(swap: Tensor) -> bool:
                moved = values
                for dim, axis in enumerate(self.axes):
                    index = denotation(axis, {atom: swap}).to(values.device)
                    moved = moved.index_select(dim - len(self.axes), index)
                change = (self._log_prob(moved) - before).abs()
                return bool((change <= _TOLERANCE * (1 + before.abs())).all())

            return classes_by_swapping(atom, is_invariant)

    def _log_prob(self, values: Tensor) -> Tensor:
        return self.factor.log_density(values).reshape(_NUM_POINTS, -1).sum(-1)


def opaque_priors(joint: LogJoint) -> list[str]:
    """Latent sites whose log-probability no rule can follow and depends only on their own value."""
    return [
        site
        for site, latent in joint.latents.items()
        if latent.excluded is None and site in joint.factors and _is_opaque(joint, site)
    ]


def _is_opaque(joint: LogJoint, site: str) -> bool:
    latent, factor = joint.latents[site].node, joint.factors[site]
    calls = Graph(joint.own_calls[site]).live_calls([factor])
    made = {id(node) for call in calls for node in call.outputs}
    inputs = [node for call in calls for node in call.inputs if id(node) not in made]
    is_own = all(node is latent or node.content is not None for node in inputs)
    return is_own and any(
        call.blame is None and (rule_for(call) is None or "linalg" in call.name) for call in calls
    )
