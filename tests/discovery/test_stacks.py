"""Tensors side by side: what is taken apart again was never permuted alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import pyro_perm as pp


class Tagger(nn.Module):
    """A classifier of sequences by the last states of a recurrent network, which come stacked."""

    def __init__(self, features: int, last: Callable[[Tensor], Tensor], **options: bool) -> None:
        super().__init__()
        self.recurrent = nn.GRU(3, 4, num_layers=2, batch_first=True, **options)
        self.head, self.last = nn.Linear(features, 2), last

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.recurrent(x)[1]))


@pytest.mark.parametrize(
    "network",
    [
        Tagger(4, lambda h: h[-1]),
        Tagger(8, lambda h: torch.cat([h[-2], h[-1]], 1), bidirectional=True),
        Tagger(8, lambda h: torch.cat([*h[-2:]], 1), bidirectional=True),
        Tagger(8, lambda h: h[-2:].transpose(0, 1).flatten(1), bidirectional=True),
        Tagger(16, lambda h: h.permute(1, 2, 0).reshape(2, -1), bidirectional=True),
    ],
)
def test_layers_of_a_recurrent_network_are_found_by_its_last_states(network: Tagger) -> None:
    network, x = network.double(), torch.randn(2, 5, 3, dtype=torch.float64)
    symmetry = pp.find_symmetry(network, x)
    layers = 4 if network.recurrent.bidirectional else 2
    assert Counter(symmetry.groups.values()) == {4: layers}
    with torch.no_grad():
        moved = functional_call(network, symmetry.apply(symmetry.sample(), network.state_dict()), x)
        assert float((moved - network(x)).abs().max()) < 1e-10


def test_states_that_are_summed_are_permuted_alike() -> None:
    network = Tagger(4, lambda h: h.sum(0)).double()
    symmetry = pp.find_symmetry(network, torch.randn(2, 5, 3, dtype=torch.float64))
    assert symmetry.groups == {"P0": 4}
