"""A plain network as a program: its parameters are latent sites, its outputs are observed.

So are the running moments of normalization layers in ``eval`` mode, by which the outputs are
computed: they are permuted with their channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_perm.program.inputs import Inputs
from pyro_perm.program.outputs import likelihood_of_output, output_name, tensors_among
from pyro_perm.program.program import Announce, Factor, Latent, Run, disregard
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.symmetry.axis import Axis
from pyro_perm.symmetry.binding import SiteShape
from pyro_perm.symmetry.spec import Spec
from pyro_perm.symmetry.suggestions import suggestion

NORMALIZATIONS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
RUNNING_MOMENTS = {"running_mean": constraints.real, "running_var": constraints.positive}


@dataclass(frozen=True)
class TorchModule:
    """A network that samples nothing, and its arguments.

    :param module: the network.
    :param inputs: its arguments.
    :param convert: what happens to its parameters and buffers before it runs, if anything.
    """

    module: nn.Module
    inputs: Inputs
    convert: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        for layer in self.module.modules():
            if isinstance(layer, (nn.DataParallel, torch.jit.ScriptModule)):
                raise TypeError(
                    f"torch.func.functional_call does not run a {type(layer).__name__} at other "
                    "parameters: give the network inside, as DataParallel's .module, or the one "
                    "that was compiled; names of its parameters lack the wrapper's prefix"
                )

    @cached_property
    def latents(self) -> dict[str, Latent]:
        """The parameters, and the running moments by which layers in ``eval`` mode normalize."""
        found = {
            name: Latent(parameter.detach(), constraints.real, scale=_scale_of(parameter))
            for name, parameter in self.module.named_parameters()
        }
        for prefix, layer in self.module.named_modules():
            if isinstance(layer, NORMALIZATIONS) and not layer.training:
                for moment, support in RUNNING_MOMENTS.items():
                    value = getattr(layer, moment)
                    if value is not None:
                        name = f"{prefix}.{moment}" if prefix else moment
                        found[name] = Latent(value, support)
        return found

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Further names of tensors that several modules share, in the network's state."""
        first: dict[int, str] = {}
        names = (
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        )
        return {
            name: known
            for name, tensor in names
            if (known := first.setdefault(id(tensor), name)) != name and known in self.latents
        }

    @property
    def exclusions(self) -> dict[str, str]:
        """Parameters that cannot be permuted at all: none."""
        return {}

    @property
    def hidden_data(self) -> str | None:
        """An argument that holds data in another form than a tensor."""
        return self.inputs.hidden_data

    def fixed_tensors(self) -> Iterator[tuple[Tensor, str]]:
        """Arguments, and buffers that are not latent."""
        yield from self.inputs.tensors()
        for name, buffer in self.module.named_buffers():
            if name not in self.latents:
                yield buffer, f"buffer '{name}'"

    def map_inputs(self, convert: Callable[[Any], Any]) -> TorchModule:
        """The same network with other arguments, and its state changed alike.

        A recurrent layer compares the types of the two before it calls any operation.
        """
        return replace(self, inputs=self.inputs.map(convert), convert=convert)

    def site_shapes(self, spec: Spec) -> dict[str, SiteShape]:
        """The shapes of a spec's parameters.

        :raises ValueError: if the network has no such parameter, or has it under several names
            that do not move alike.
        """
        shapes = {}
        parameters = dict(self.module.named_parameters())
        for group, sites in spec.items():
            for site in sites:
                latent = self.latents.get(self.aliases.get(site, site))
                if latent is None:
                    raise ValueError(
                        f"group '{group}' names site '{site}', which is no parameter of the "
                        f"network{suggestion(site, self.latents)}; its parameters are "
                        f"{list(self.latents)}"
                    )
                shape = tuple(latent.shape)
                shapes[site] = SiteShape(shape, len(shape), follows=site not in parameters)
            self._require_tied(group, sites)
        return shapes

    def _require_tied(self, group: str, sites: Mapping[str, tuple[Axis, ...]]) -> None:
        """Refuse a group that moves a tensor under one of its names only."""
        for alias, name in self.aliases.items():
            shape = tuple(self.latents[name].shape)
            one, other = (
                {axis.resolve(shape, len(shape)) for axis in sites.get(site, ())}
                for site in (alias, name)
            )
            if one != other:
                raise ValueError(
                    f"group '{group}': '{alias}' and '{name}' are one tensor of the network, so "
                    "both need the same axes"
                )

    def run(self, values: Mapping[str, Tensor], announce: Announce = disregard) -> Run:
        """Run with some values of the parameters.

        :param values: name -> value.
        :param announce: is told of what the outputs are compared with.
        """
        present = {name: latent.value for name, latent in self.latents.items()}
        if self.convert is not None:
            state = {**dict(self.module.named_buffers()), **present}
            present = {name: self.convert(value) for name, value in state.items()}
        present.update((name, values[name]) for name in self.latents.keys() & values.keys())
        with fixed_seed():
            returned = torch.func.functional_call(
                self.module, present, tuple(self.inputs.args), dict(self.inputs.kwargs)
            )
        factors = {}
        for position, output in enumerate(tensors_among(returned)):
            likelihood, anything = likelihood_of_output(output)
            name = output_name(position)
            announce(anything, name)
            factors[name] = Factor(False, anything, likelihood.log_prob)
        return Run(factors)


def _scale_of(parameter: Tensor) -> float:
    """The scale of random values at which signals neither grow nor vanish from layer to layer.

    Deep networks of standard normal weights are chaotic where their units saturate: rounding errors
    grow as large as the outputs.
    """
    fan_in = math.prod(parameter.shape[1:])
    return 1 / math.sqrt(fan_in) if fan_in else 1.0
