"""What a guide knows of its model: the latent sites that it saw in its first run.

Written down, they are sites without a prior: a support, shapes and plates are all that a guide
asks for. A model of such sites sets a guide up as its own model has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_perm.saving.supports import describe_support, support_of

Described = Mapping[str, Any]


def describe_sites(trace: Any, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The latent sites of a guide's prototype trace, as JSON.

    :param tensors: takes up what of them is a tensor.
    :raises ValueError: if a site cannot be described; names it.
    """
    return [_describe(name, node, tensors) for name, node in trace.iter_stochastic_nodes()]


def model_of_sites(
    described: Sequence[Described], tensors: dict[str, Tensor]
) -> Callable[..., None]:
    """A model that has these latent sites, and nothing else."""
    sites = [(each, SiteWithoutPrior.of(each, tensors)) for each in described]

    def model() -> None:
        plates: dict[str, Any] = {}
        for each, distribution in sites:
            with ExitStack() as stack:
                for frame in each["plates"]:
                    if frame["name"] not in plates:
                        plates[frame["name"]] = pyro.plate(
                            frame["name"],
                            frame["full_size"],
                            subsample_size=frame["size"],
                            dim=frame["dim"],
                        )
                    stack.enter_context(plates[frame["name"]])
                pyro.sample(each["name"], distribution)

    return model


def _describe(name: str, node: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    fn = node["fn"]
    try:
        support = describe_support(fn.support, f"support.{name}", tensors)
    except ValueError as error:
        raise ValueError(
            f"site '{name}' cannot be saved: {error}. Save guide.state_dict() instead, and call a "
            "new guide once before load_state_dict"
        ) from error
    frames = node["cond_indep_stack"]
    return {
        "name": name,
        "support": support,
        "batch_shape": list(fn.batch_shape),
        "event_shape": list(fn.event_shape),
        "dtype": str(node["value"].dtype).removeprefix("torch."),
        "plates": [
            {"name": f.name, "dim": f.dim, "size": f.size, "full_size": f.full_size or f.size}
            for f in frames
        ],
    }


class SiteWithoutPrior(TorchDistribution):
    """What a guide asks of the distribution at a site: its support and its shapes.

    :param support: of the site.
    :param batch_shape: of the site.
    :param event_shape: of the site.
    :param dtype: of its value.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        support: constraints.Constraint,
        batch_shape: Sequence[int],
        event_shape: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self._support, self.dtype = support, dtype
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @classmethod
    def of(cls, described: Described, tensors: dict[str, Tensor]) -> SiteWithoutPrior:
        """The one that was described.

        :raises TypeError: if its dtype is none.
        """
        dtype = getattr(torch, described["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{described['dtype']} is no dtype")
        support = support_of(described["support"], tensors)
        return cls(support, described["batch_shape"], described["event_shape"], dtype)

    @constraints.dependent_property
    def support(self) -> Any:
        """The support of the site."""
        return self._support

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A value of the support, the same each time, which parameters soon replace."""
        transform = biject_to(self._support)
        shape = transform.inverse_shape(self.shape(torch.Size(sample_shape)))
        value: Tensor = transform(torch.zeros(shape, dtype=self.dtype, device="cpu"))
        return value
