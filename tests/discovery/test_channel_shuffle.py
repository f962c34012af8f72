"""Shuffles of channels: what they interleave stays apart, and is found by where it is consumed.

A channel is one unit, wherever shuffles take it. Channels of one layer may be permuted if the same
layers consume them, and no others: their places between, and what they lie beside, say nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples
from torch import Tensor, nn
from torch.func import functional_call

import pyro_perm as pp

Label = tuple[int, int]  # layer and unit


def shuffle(x: Tensor, sizes: Sequence[int], order: Sequence[int]) -> Tensor:
    """Channels are viewed as a tensor of several dimensions, which change places."""
    dims = [1 + place for place in order]
    rest = range(1 + len(sizes), x.dim() - 1 + len(sizes))
    return x.unflatten(1, sizes).permute(0, *dims, *rest).flatten(1, len(sizes))


class Shuffled(nn.Module):
    """Layers that work on a part of their channels each, between shuffles.

    Attributes:
        plan: for each layer, the digits of a channel's number and their new order, how many
            channels pass by the layer, and how many it makes of the others.
    """

    def __init__(self, width: int, plan: Sequence[tuple[list[int], list[int], int, int]]) -> None:
        super().__init__()
        self.plan = plan
        self.first = nn.Linear(3, width)
        layers = []
        for _, _, passing, made in plan:
            layers.append(nn.Linear(width - passing, made))
            width = passing + made
        self.layers, self.last = nn.ModuleList(layers), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for (sizes, order, passing, _), layer in zip(self.plan, self.layers, strict=True):
            x = shuffle(x, sizes, order)
            by, taken = x.tensor_split([passing], 1)
            x = torch.cat([by, torch.tanh(layer(taken))], 1)
        return self.last(x)

    def interchangeable_units(self) -> Counter[int]:
        """Sizes of the classes of units that one layer makes and the same layers consume."""
        labels = [(-1, unit) for unit in range(self.first.out_features)]
        consumers: dict[Label, list[int]] = {label: [] for label in labels}
        for number, (sizes, order, passing, made) in enumerate(self.plan):
            places = torch.arange(len(labels)).view(sizes).permute(order).flatten()
            labels = [labels[place] for place in places]
            for label in labels[passing:]:
                consumers[label].append(number)
            new = [(number, unit) for unit in range(made)]
            consumers |= {label: [] for label in new}
            labels = labels[:passing] + new
        for label in labels:
            consumers[label].append(len(self.plan))
        classes = Counter((layer, *consumers[layer, unit]) for layer, unit in consumers)
        return Counter(size for size in classes.values() if size > 1)


def random_network(seed: int) -> Shuffled:
    choose = random.Random(seed)
    width = first = choose.choice([4, 6, 8, 12])
    plan = []
    for _ in range(choose.randint(1, 4)):
        sizes, rest = [], width
        while rest > 1 and len(sizes) < 3:
            sizes.append(choose.choice([d for d in range(2, rest + 1) if rest % d == 0]))
            rest //= sizes[-1]
        sizes = [*sizes[:-1], sizes[-1] * rest] if sizes else [width]
        order = choose.sample(range(len(sizes)), len(sizes))
        passing = choose.randint(0, width - 1)
        made = choose.randint(1, 6)
        plan.append((sizes, order, passing, made))
        width = passing + made
    return Shuffled(first, plan)


@torch.no_grad()
def change_of_outputs(network: nn.Module, symmetry: pp.PermutationSymmetry, x: Tensor) -> float:
    moved = symmetry.apply(symmetry.sample(), network.state_dict())
    return float((functional_call(network, moved, x) - network(x)).abs().max())


@settings(max_examples=examples(40))
@given(st.integers(0, 2**32))
def test_what_the_same_layers_consume_is_interchangeable(seed: int) -> None:
    torch.manual_seed(seed)
    network, x = random_network(seed).double(), torch.randn(5, 3)
    symmetry = pp.find_symmetry(network, x)
    assert Counter(symmetry.groups.values()) == network.interchangeable_units()
    if symmetry:
        assert change_of_outputs(network, symmetry, x) < 1e-10


class Unit(nn.Module):
    """A unit of ShuffleNetV2: half of the channels pass by, all of them are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
            *(nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half)),
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        by, taken = x.chunk(2, 1)
        x = torch.cat([by, self.branch(taken)], 1)
        return shuffle(x, [2, x.shape[1] // 2], [1, 0])


class ShuffledByModule(nn.Module):
    def __init__(self, shuffles: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.shuffles = shuffles

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shuffles(self.first(x).relu())).mean((2, 3))


def test_halves_of_halves_of_a_unit_in_a_stage_of_shufflenet() -> None:
    """Of 16 channels 8 pass by: 4 of what a unit makes are for the next, 2 for that after it."""
    stage = [Unit(16) for _ in range(4)]
    network = nn.Sequential(nn.Conv2d(3, 16, 1), *stage, nn.Conv2d(16, 2, 1)).double().eval()
    symmetry = pp.find_symmetry(network, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    # The first convolution's: 8 for the first unit, 4 for the second, 2 for the third.
    first, inner = [8, 4, 2], 4 * [8]
    made = [4, 2, *[4, 2, 2], *[4, 4], 8]  # by unit, up to the last convolution
    assert Counter(symmetry.groups.values()) == Counter([*first, *inner, *made])
    assert not [why for why in symmetry.reasons.values() if "reshaped" in why]


@pytest.mark.parametrize(
    "shuffles",
    [
        nn.ChannelShuffle(2),
        nn.Sequential(nn.ChannelShuffle(2), nn.ReLU(), nn.ChannelShuffle(4)),
    ],
)
def test_all_channels_of_one_layer_are_interchangeable_behind_a_shuffle(
    shuffles: nn.Module,
) -> None:
    network = ShuffledByModule(shuffles).double()
    symmetry = pp.find_symmetry(network, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert symmetry.groups == {"P0": 8}


def test_what_is_added_to_its_own_shuffle_moves_in_whole_cycles() -> None:
    """Of 12 places that ``(3, 4) -> (4, 3)`` moves, two stay and two cycles have five."""

    class Residual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + shuffle(x, [3, 4], [1, 0])

    network = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), Residual(), nn.Linear(12, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    symmetry = pp.find_symmetry(network, x)
    assert Counter(symmetry.groups.values()) == {2: 2}
    assert change_of_outputs(network, symmetry, x) < 1e-10


@pytest.mark.parametrize(
    "move",
    [
        lambda h: h.flip(-1),
        lambda h: h.roll(2, -1),
        lambda h: h[:, [3, 0, 5, 1, 4, 2]],
        lambda h: h.index_select(1, torch.tensor([3, 0, 5, 1, 4, 2])),
    ],
)
def test_units_are_followed_to_other_places(move: Callable[[Tensor], Tensor]) -> None:
    """Whatever the places, the third layer consumes half of the units, and the last the others."""

    class Coupling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            by, taken = move(torch.tanh(self.first(x))).chunk(2, -1)
            return self.last(torch.cat([by, torch.tanh(self.inner(taken))], -1))

    network, x = Coupling().double(), torch.randn(5, 3)
    symmetry = pp.find_symmetry(network, x)
    assert Counter(symmetry.groups.values()) == {3: 3}
    assert change_of_outputs(network, symmetry, x) < 1e-10
