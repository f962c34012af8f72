"""A model's prior and likelihood as functions of one vector of unconstrained latent values."""

from __future__ import annotations

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_perm.program.call import Call
from pyro_perm.program.full_data import FullData, survey
from pyro_perm.program.sites import Site, SiteKind
from pyro_perm.program.vectorized import Datasets, DrawMapper, Values


class PackedModel:
    """The densities of a model over its packed latent values.

    :param call: a Pyro model, and its arguments.
    :raises ValueError: if a latent site is discrete, or its density is scaled.
    """

    def __init__(self, call: Call) -> None:
        with torch.no_grad(), poutine.seed(rng_seed=0):
            self._model = survey(call)
        self._to_support = {}
        for name in self._model.names(SiteKind.LATENT):
            site = self._model.sites[name]
            if site.support.is_discrete:  # vmap refuses to enumerate it.
                raise ValueError(
                    f"site '{name}' is discrete: marginalize it in the model, for example with "
                    "MixtureSameFamily"
                )
            if _is_scaled(self._model, site):
                raise ValueError(f"site '{name}' has a scaled density, which is no prior")
            self._to_support[name] = biject_to(site.support)
        self._shapes: dict[str, torch.Size] = {
            name: to_support.inv(self._model.sites[name].value).shape
            for name, to_support in self._to_support.items()
        }

    def draw(self, num: int) -> Tensor:
        """Packed draws from the prior, shape ``(num, dimensions)``."""

        def draw(_: Values) -> Datasets:
            drawn = self._model.replicating.draw().values
            return {"prior": {name: drawn[name] for name in self._shapes}}

        map_draws = DrawMapper(at_once=num, progress=False)
        draws = map_draws(draw, {"index": torch.arange(num)}, description="prior draws")["prior"]
        packed = [self._to_support[name].inv(draws[name]).reshape(num, -1) for name in self._shapes]
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
        model = self._model
        terms = model.evaluate(values).terms
        prior = [term for term in terms if values.keys() >= set(term.sites)]
        likelihood = [term for term in terms if not values.keys() >= set(term.sites)]
        return model.log_joint(prior) + log_jacobian, model.log_joint(likelihood)


def _is_scaled(model: FullData, site: Site) -> bool:
    scale = torch.as_tensor(site.scale)
    return bool((scale != 1).any()) or not model.passed.isdisjoint(site.plates.values())
