"""A model's prior and likelihood as functions of one vector of unconstrained latent values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_perm.posterior.export.draws import Call, prior
from pyro_perm.program.full_data import log_joint, run
from pyro_perm.program.vectorized import DrawMapper


class PackedModel:
    """The densities of a model over its packed latent values.

    :param model: a Pyro model.
    :param args: its arguments; ``kwargs`` likewise.
    :raises ValueError: if a latent site is discrete, or its density is scaled.
    """

    def __init__(self, model: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._call = Call(model, args, kwargs)
        with torch.no_grad(), poutine.seed(rng_seed=0):
            trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
            self._sites = run(model, args, kwargs)
        latent = {name: site for name, site in self._sites.items() if site.is_latent}
        for name, site in latent.items():
            if trace.nodes[name]["fn"].support.is_discrete:
                raise ValueError(f"site '{name}' is discrete: marginalize it")
            if not torch.equal(site.scaled_log_prob, site.log_prob):
                raise ValueError(f"site '{name}' has a scaled density, which is no prior")
        self._to_support = {n: biject_to(trace.nodes[n]["fn"].support) for n in latent}
        shapes = {n: self._to_support[n].inv(site.value).shape for n, site in latent.items()}
        self._shapes: dict[str, torch.Size] = shapes

    def draw(self, num: int) -> Tensor:
        """Packed draws from the prior, shape ``(num, dimensions)``."""
        map_draws = DrawMapper(at_once=num, progress=False)
        draws = prior(self._call, self._sites, num, map_draws)["prior"]
        packed = [
            self._to_support[name].inv(draws[name][0]).reshape(num, -1) for name in self._shapes
        ]
        return torch.cat(packed, -1)

    def log_densities(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of the prior at ``(dimensions,)`` in unconstrained space, and likelihood."""
        values, log_jacobian = {}, packed.new_zeros(())
        sizes = [shape.numel() for shape in self._shapes.values()]
        for part, (name, shape) in zip(packed.split(sizes), self._shapes.items(), strict=True):
            part = part.reshape(shape)
            to_support = self._to_support[name]
            values[name] = to_support(part)
            log_jacobian = log_jacobian + to_support.log_abs_det_jacobian(part, values[name]).sum()
        sites = run(self._call.model, self._call.args, self._call.kwargs, values)
        log_prior = log_joint({name: sites[name] for name in values}) + log_jacobian
        return log_prior, log_joint({n: site for n, site in sites.items() if n not in values})
