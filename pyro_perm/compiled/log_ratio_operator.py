r"""``log q^G(w) - log q(w)`` as one operator of a compiled graph.

Which units overlap is decided by the numbers, and with it what there is to sum: no graph could hold
that. A compiler takes an operator as it is. The gradient is had together with the value, so that
the operator returns both, and going backward is a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, product
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pyro_perm.density.density import Density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import Estimator
from pyro_perm.finite_estimate import finite_estimate
from pyro_perm.permanent._derivatives import require_first_derivative
from pyro_perm.program._torch_internals import autograd_in_operators
from pyro_perm.symmetry import SymmetryGroup

_numbers = count()

# It waits for the device and draws random numbers: not for CUDA graphs, nor to be run again in the
# backward pass. Older versions of PyTorch have no such tags, and record CUDA graphs of neither.
_TAGS: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe, torch.Tag.nondeterministic_seeded)}
    if hasattr(torch.Tag, "cudagraph_unsafe")
    else {}
)


class Estimate:
    """An estimate of the log-ratio, which graphs know by a number.

    It is to be kept for as long as they are.

    :param symmetry: the group, which rescales no units.
    :param estimator: what estimates.
    """

    def __init__(self, symmetry: SymmetryGroup, estimator: Estimator) -> None:
        self._symmetry, self._estimator = symmetry, estimator
        self._number = next(_numbers)
        _estimates[self._number] = self

    def __call__(self, density: Density) -> Tensor:
        """The log-ratio of every draw, as one operator of the graph that is being recorded.

        :param density: one with this group.
        :returns: shape ``(*batch)``, in nats and double precision.
        """
        kinds = density.values, density.locs, density.scales
        tensors = [kind[site] for kind in kinds for site in self._symmetry.sites]
        log_ratio: Tensor = _log_ratio(tensors, len(density.batch_shape), self._number)[0]
        return log_ratio

    def with_gradients(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The log-ratio of one draw, and its gradient in each tensor."""
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        sites = self._symmetry.sites
        values, locs, scales = (
            dict(zip(sites, leaves[start : start + len(sites)], strict=True))
            for start in range(0, len(leaves), len(sites))
        )
        density = FactorizedDensity(self._symmetry, values, locs, scales, torch.Size())
        log_ratio = finite_estimate(density, self._estimator)
        if not log_ratio.requires_grad:
            return log_ratio, *map(torch.zeros_like, tensors)
        gradients = torch.autograd.grad(log_ratio, leaves, materialize_grads=True)
        return log_ratio.detach(), *(gradient.contiguous() for gradient in gradients)

    def have_batch(self, tensors: Sequence[Tensor]) -> list[bool]:
        """Which tensors have an entry for each draw; the others serve them all."""
        ranks = [self._symmetry.site_rank(site) for site in self._symmetry.sites] * 3
        return [tensor.dim() > rank for tensor, rank in zip(tensors, ranks, strict=True)]


_estimates: WeakValueDictionary[int, Estimate] = WeakValueDictionary()


@torch.library.custom_op(
    "pyro_perm::log_ratio",
    mutates_args=(),
    schema="(Tensor[] tensors, int batch_dims, int number) -> Tensor[]",
    **_TAGS,
)
def _log_ratio(tensors: Sequence[Tensor], batch_dims: int, number: int) -> list[Tensor]:
    """Log-ratio of each draw, shape ``(*batch)``, and its gradients, ``(*batch, *site shape)``.

    :param tensors: values, locs and scales of the sites.
    """
    estimate = _estimates[number]
    batch = tensors[0].shape[:batch_dims]
    have_batch = estimate.have_batch(tensors)
    with autograd_in_operators():
        draws = [
            estimate.with_gradients(
                [
                    tensor[index] if has_batch else tensor
                    for tensor, has_batch in zip(tensors, have_batch, strict=True)
                ]
            )
            for index in product(*map(range, batch))
        ]
    if not batch:
        return [*draws[0]]
    return [torch.stack(each).unflatten(0, batch) for each in zip(*draws, strict=True)]


@_log_ratio.register_fake
def _shapes(tensors: Sequence[Tensor], batch_dims: int, number: int) -> list[Tensor]:
    batch = tensors[0].shape[:batch_dims]
    have_batch = _estimates[number].have_batch(tensors)
    gradients = [
        tensor.new_empty(tensor.shape if has_batch else (*batch, *tensor.shape))
        for tensor, has_batch in zip(tensors, have_batch, strict=True)
    ]
    return [tensors[0].new_empty(batch, dtype=torch.float64), *gradients]


def _save(ctx: Any, inputs: tuple[list[Tensor], int, int], output: list[Tensor]) -> None:
    tensors, ctx.batch_dims, _ = inputs
    ctx.shapes = [tensor.shape for tensor in tensors]
    ctx.save_for_backward(*output[1:])


def _gradients(ctx: Any, grads: list[Tensor]) -> tuple[list[Tensor], None, None]:
    require_first_derivative("an estimate in a compiled graph")
    of_sites = []
    for gradient, shape in zip(ctx.saved_tensors, ctx.shapes, strict=True):
        weight = grads[0].to(gradient.dtype)
        weight = weight[(..., *[None] * (gradient.dim() - ctx.batch_dims))]
        of_sites.append((weight * gradient).sum_to_size(shape))
    return of_sites, None, None


_log_ratio.register_autograd(_gradients, setup_context=_save)
