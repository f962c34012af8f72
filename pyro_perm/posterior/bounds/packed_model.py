"""A model's prior and likelihood as functions of one vector of unconstrained latent values."""

from __future__ import annotations

from dataclasses import replace

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_perm.posterior.bounds.split_data import PerDraw, require_no_local_sites, split_of
from pyro_perm.program.batches import Data
from pyro_perm.program.call import Program
from pyro_perm.program.full_data import survey
from pyro_perm.program.seeds import fixed_seed
from pyro_perm.program.sites import Site, SiteKind
from pyro_perm.program.vectorized import Datasets, DrawMapper, Values


class PackedModel:
    """The densities of a model over its packed latent values.

    :param model: a Pyro model.
    :param data: what it is called with; the batches of a loader are all kept.
    :raises ValueError: if a latent site is discrete, or its density is scaled; if a plate has more
        rows than the data, or a loader does not give each of its rows once.
    """

    def __init__(self, model: Program, data: Data) -> None:
        batches = list(data)
        with torch.no_grad(), fixed_seed():
            seen = survey(data.call(model))
            self._split = split_of(seen, None, data)
            require_no_local_sites(seen, self._split)
        self._model = replace(seen, split=self._split.plates)
        self._parts = [replace(self._model, call=batch.call(model)) for batch in batches]
        self._to_support = {}
        for name in self._model.names(SiteKind.LATENT):
            site = self._model.sites[name]
            if site.support.is_discrete:  # vmap refuses to enumerate it.
                raise ValueError(
                    f"site '{name}' is discrete: marginalize it in the model, for example with "
                    "MixtureSameFamily"
                )
            if _is_scaled(site):
                raise ValueError(f"site '{name}' has a scaled density, which is no prior")
            self._to_support[name] = biject_to(site.support)
        self._shapes: dict[str, torch.Size] = {
            name: to_support.inv(self._model.sites[name].value).shape
            for name, to_support in self._to_support.items()
        }
        with torch.no_grad(), fixed_seed():
            self._require_all_data()

    def draw(self, num: int) -> Tensor:
        """Packed draws from the prior, shape ``(num, dimensions)``."""

        def draw(_: Values) -> Datasets:
            drawn = self._model.without_observations.draw().values
            return {"prior": {name: drawn[name] for name in self._shapes}}

        map_draws = DrawMapper(at_once=num, progress=False)
        draws = map_draws(
            draw, {"index": torch.arange(num, device="cpu")}, description="prior draws"
        )["prior"]
        packed = [self._to_support[name].inv(draws[name]).reshape(num, -1) for name in self._shapes]
        return torch.cat(packed, -1)

    @property
    def num_batches(self) -> int:
        """Number of batches of the data."""
        return len(self._parts)

    def log_densities(self, packed: Tensor, batch: int = 0) -> tuple[Tensor, Tensor]:
        """Log-density of the prior at ``(dimensions,)`` in unconstrained space, and likelihood.

        :param batch: number of the batch. With all but the first, the prior is zero, and the
            likelihood has what is of the batch alone.
        """
        values, log_jacobian = {}, packed.new_zeros(())
        sizes = [shape.numel() for shape in self._shapes.values()]
        for part, (name, shape) in zip(packed.split(sizes), self._shapes.items(), strict=True):
            part = part.reshape(shape)
            to_support = self._to_support[name]
            values[name] = to_support(part)
            log_jacobian = log_jacobian + to_support.log_abs_det_jacobian(part, values[name]).sum()
        model = self._parts[batch]
        terms = model.evaluate(values).terms
        prior = [term for term in terms if values.keys() >= set(term.sites)]
        likelihood = [term for term in terms if not values.keys() >= set(term.sites)]
        if batch == 0:
            return model.log_joint(prior) + log_jacobian, model.log_joint(likelihood)
        own = [term for term in likelihood if self._split.covers(term)]
        return packed.new_zeros(()), model.log_joint(own)

    def _require_all_data(self) -> None:
        """Refuse batches that do not have each row once, or that change what is of no batch."""
        values = {name: self._model.sites[name].value for name in self._shapes}
        total, rows = PerDraw(self._split), self._split.count()
        for part in self._parts:
            total.add(part.evaluate(values).terms)
            rows.add(
                poutine.trace(poutine.condition(part.call.program, values)).get_trace(
                    *part.call.args, **part.call.kwargs
                )
            )
        rows.require_all()


def _is_scaled(site: Site) -> bool:
    return bool((torch.as_tensor(site.scale, device="cpu") != 1).any())
