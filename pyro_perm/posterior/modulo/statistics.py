"""Running moments of a network whose weights were mixed, computed anew on data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pyro_perm.program.torch_module import NORMALIZATIONS
from pyro_perm.symmetry.values import require_tensors, with_values


@torch.no_grad()
def reset_statistics(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    batches: Iterable[Tensor | Sequence[Tensor]],
) -> dict[str, Tensor]:
    """The state of a network with its running moments computed anew on data.

    Between two networks, even aligned ones, the variance of hidden units collapses, and running
    moments on the line between theirs do not fit: resetting them lowers the barrier a great deal
    (REPAIR: Jordan et al. 2023, Section 5). Usage:

    >>> import torch
    >>> import pyro_perm as pp
    >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    >>> x = torch.randn(8, 2)
    >>> state = pp.reset_statistics(network, network.state_dict(), [x])
    >>> torch.allclose(state["1.running_mean"], network[0](x).mean(0))
    True

    :param network: the network; it stays as it is.
    :param state_dict: of its parameters and buffers.
    :param batches: inputs of the network, a sequence of them each where it takes several. The
        moments are the mean over batches of theirs, as in training with ``momentum=None``.
    :returns: the state with new moments.
    :raises ValueError: if no layer of the network has running moments, or there is no batch.
    :raises TypeError: if ``batches`` is a tensor, or the state is none.
    """
    require_tensors(state_dict, "state_dict")
    if isinstance(batches, Tensor):
        raise TypeError("batches are several inputs, but this is a tensor: give [x] for one batch")
    fresh = copy.deepcopy(network).eval()
    fresh.load_state_dict(state_dict)
    layers = [
        layer
        for layer in fresh.modules()
        if isinstance(layer, NORMALIZATIONS) and layer.running_mean is not None
    ]
    if not layers:
        raise ValueError(
            "no layer of the network has running moments: there are no statistics to reset"
        )
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    num_batches = 0
    for num_batches, batch in enumerate(batches, start=1):
        for layer in layers:
            layer.momentum = 1 / num_batches
        fresh(*(batch if isinstance(batch, Sequence) else (batch,)))
    if not num_batches:
        raise ValueError("there is no batch to compute the statistics on")
    return with_values(state_dict, _moments(fresh))


def _moments(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    ends = (".running_mean", ".running_var")
    return {name: value for name, value in state.items() if f".{name}".endswith(ends)}
