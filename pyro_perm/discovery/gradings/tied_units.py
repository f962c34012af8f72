"""Units that the likelihood ties together, whether or not they can be permuted.

Priors and data tell units apart, but not what they may be multiplied by. So the likelihood is
interpreted once more, as if its data, parameters and random numbers were permuted with the units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from pyro_perm.discovery.gradings.rules import SCALES
from pyro_perm.discovery.permutations.algebra import freeze
from pyro_perm.discovery.permutations.classes import colour_classes
from pyro_perm.discovery.permutations.expressions import Atom, AxisExpr, Reason, axis_of_size
from pyro_perm.discovery.permutations.interpreter import Interpreter
from pyro_perm.discovery.permutations.structured_axes import (
    AxesOfSites,
    sites_along,
    sites_of_free_atoms,
)
from pyro_perm.discovery.recording.graph import Node
from pyro_perm.discovery.recording.log_joint import LogJoint
from pyro_perm.symmetry.axis import Axis


@dataclass(frozen=True)
class TiedUnits:
    """Units that the likelihood ties together.

    Attributes:
        axes: site -> its axes, of the sites with such units.
        atom: the units, along these axes.
        classes: units that are multiplied by the same, for each class.
    """

    axes: AxesOfSites
    atom: Atom
    classes: list[Tensor]

    def along(self, members: Tensor) -> dict[str, tuple[Axis, ...]]:
        """The sites and axes along which some of the units lie, shape ``(n,)``."""
        return sites_along(self.axes, self.atom, members)


def units_of_likelihood(joint: LogJoint) -> Iterator[TiedUnits]:
    """All units along the latent sites' axes."""
    interpreter = _Unfrozen(joint.graph)
    axes = {name: interpreter.axes(latent.node) for name, latent in joint.latents.items()}
    for name, latent in joint.latents.items():
        for axis in axes[name] if latent.excluded is not None else ():
            freeze(axis, Reason(latent.excluded or ""))
    interpreter.run([node for site, node in joint.factors.items() if site not in joint.latents])
    # Constants tell units apart only by what they leave alone.
    constants = [
        replace(constant, content=SCALES.degrees_of(constant.content))
        for constant in interpreter.constants
    ]
    for atom, its_sites in sites_of_free_atoms(axes).items():
        labels, _ = colour_classes(atom, constants)
        classes = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
        yield TiedUnits(its_sites, atom, classes)


class _Unfrozen(Interpreter):
    """Lets data, parameters and random numbers be permuted too."""

    def axes(self, node: Node) -> tuple[AxisExpr, ...]:
        if id(node) not in self._axes:
            self._axes[id(node)] = tuple(axis_of_size(size) for size in node.shape)
        return self._axes[id(node)]
