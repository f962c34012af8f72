"""Priors whose formula no rule can follow, such as a multivariate normal's: tested numerically.

A Cholesky factor hides that a covariance matrix treats some units alike. But a prior that depends
on nothing besides its own site can be asked: it allows to permute two units if swapping them never
changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_perm.discovery.permutations.algebra import Atom, AxisExpr, atoms_of, denotation, resolve
from pyro_perm.discovery.permutations.classes import classes_by_swapping
from pyro_perm.discovery.permutations.rules import rule_for
from pyro_perm.discovery.recording.graph import Call, Graph, Node
from pyro_perm.discovery.recording.log_joint import LogJoint
from pyro_perm.program.double_precision import DoublePrecision

_NUM_POINTS = 2
_TOLERANCE = 1e-9
_MAX_UNITS = 128


@dataclass(frozen=True)
class OpaquePrior:
    """A prior to be tested numerically.

    Attributes:
        site: the node of the site in a trace of the model, in double precision.
        axes: one axis for each dimension of the value.
    """

    site: Any
    axes: tuple[AxisExpr, ...]

    def classes(self, atom: Atom) -> Tensor | None:
        """Classes of an atom's units that the prior does not tell apart.

        :returns: a class label for each unit, shape ``(size,)``, or None if no unit lies along the
            site's axes.
        """
        if not any(atom in atoms_of(resolve(axis)) for axis in self.axes):
            return None
        if atom.size > _MAX_UNITS:
            return torch.arange(atom.size)
        transform = biject_to(self.site["fn"].support)
        with DoublePrecision() as precision:
            shape = transform.inverse_shape(torch.Size((_NUM_POINTS, *self.site["value"].shape)))
            values = precision.double(transform(torch.randn(shape, dtype=torch.float64)))
            before = self._log_prob(values)

            def is_invariant(swap: Tensor) -> bool:
                moved = values
                for dim, axis in enumerate(self.axes):
                    index = denotation(axis, {atom: swap})
                    moved = moved.index_select(dim - len(self.axes), index)
                change = (self._log_prob(moved) - before).abs()
                return bool((change <= _TOLERANCE * (1 + before.abs())).all())

            return classes_by_swapping(atom, is_invariant)

    def _log_prob(self, values: Tensor) -> Tensor:
        log_prob: Tensor = self.site["fn"].log_prob(values)
        return log_prob.reshape(_NUM_POINTS, -1).sum(-1)


def opaque_priors(joint: LogJoint) -> list[str]:
    """Latent sites whose log-probability no rule can follow and depends only on their own value."""
    return [
        site
        for site, latent in joint.latents.items()
        if latent.excluded is None
        and _is_opaque(
            Graph(joint.prior_calls[site]).live_calls([joint.factors[site]]), latent.node
        )
    ]


def _is_opaque(calls: list[Call], latent: Node) -> bool:
    made = {id(node) for call in calls for node in call.outputs}
    inputs = [node for call in calls for node in call.inputs if id(node) not in made]
    is_own = all(node is latent or node.content is not None for node in inputs)
    return is_own and any(
        call.blame is None and (rule_for(call) is None or "linalg" in call.name) for call in calls
    )
