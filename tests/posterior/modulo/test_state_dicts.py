"""State of networks: moved, aligned and interpolated as it is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

import pyro_perm as pp

X = torch.randn(16, 1, 5, 5, generator=torch.Generator().manual_seed(0)).double()


def convolutional() -> nn.Module:
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(36, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)),
    )
    return network.double().train()


def with_moments_of_its_own(network: nn.Module) -> nn.Module:
    """The network after a few batches, in eval mode."""
    for _ in range(3):
        network(X + torch.randn(()))
    return network.eval()


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 3), nn.Linear(3, 4)
        self.again = nn.Linear(4, 3)
        self.again.weight, self.again.bias = self.encode.weight, self.encode.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)) * torch.sigmoid(self.again(x)))


def function_of(network: nn.Module, state: Mapping[str, Tensor]) -> Tensor:
    network.load_state_dict(dict(state))
    return network(X)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def networks(num: int) -> list[nn.Module]:
    return [with_moments_of_its_own(convolutional()) for _ in range(num)]


def test_aligned_state_dicts_are_the_same_functions_close_to_their_mean() -> None:
    trained = networks(4)
    symmetry = pp.find_symmetry(trained[0], X)
    states = [state_of(network) for network in trained]
    outputs = [network(X).detach() for network in trained]
    alignment = pp.align(states, symmetry)
    for network, state, output in zip(trained, alignment.state_dicts, outputs, strict=True):
        torch.testing.assert_close(function_of(network, state), output)
    weights = [name for name in symmetry.sites if "running" not in name]
    spread_before, spread_after = (
        sum(float(torch.stack([s[w] for s in each]).var(0).sum()) for w in weights)
        for each in (states, alignment.state_dicts)
    )
    assert spread_after < spread_before
    mean = {w: torch.stack([s[w] for s in alignment.state_dicts]).mean(0) for w in symmetry.sites}
    for name in symmetry.sites:
        torch.testing.assert_close(alignment.reference[name], mean[name])


def test_permuted_copies_become_one_state_dict() -> None:
    [network] = networks(1)
    symmetry, state = pp.find_symmetry(network, X), state_of(network)
    copies = [symmetry.apply(symmetry.sample(), state) for _ in range(3)]
    assert all(list(copy) == list(state) for copy in copies)
    assert not torch.equal(copies[0]["1.running_var"], copies[1]["1.running_var"])
    aligned = pp.align(copies, symmetry, state)
    for found in (aligned.state_dicts, [pp.canonical_order(copy, symmetry) for copy in copies]):
        for name in state:
            assert all(torch.equal(each[name], found[0][name]) for each in found), name
    assert torch.equal(aligned.state_dicts[0]["1.running_mean"], state["1.running_mean"])
    torch.testing.assert_close(function_of(network, found[0]), function_of(network, state))


def test_running_moments_do_not_count_as_distance() -> None:
    [network] = networks(1)
    symmetry, state = pp.find_symmetry(network, X), state_of(network)
    other = {
        name: value * 1e6 * torch.rand_like(value) if "running" in name else value
        for name, value in state.items()
    }
    g = symmetry.sample()
    aligned = pp.align(symmetry.apply(g, other), symmetry, state)
    inverse = symmetry.inverse(g)
    assert all(torch.equal(aligned.permutations[group], inverse[group]) for group in inverse)


def test_weights_that_several_modules_share_move_under_all_of_their_names() -> None:
    network, x = TiedAutoencoder().double(), torch.randn(5, 4)
    symmetry = pp.find_symmetry(network, x)
    assert set(symmetry.sites) >= {"encode.weight", "again.weight", "again.bias"}
    assert symmetry.axes_to_perm["again.weight"] == ("P0", None)
    before, state = network(x), network.state_dict()
    network.load_state_dict(symmetry.apply({"P0": torch.tensor([1, 2, 0])}, state))
    torch.testing.assert_close(network(x), before)
    torn = {"encode.weight": 0, "encode.bias": 0, "decode.weight": 1, "again.bias": 0}
    with pytest.raises(ValueError, match=r"'again\.weight' and 'encode\.weight' are one tensor"):
        pp.PermutationSymmetry({"hidden": torn}).verify(network, x)
    pp.PermutationSymmetry({"hidden": {**torn, "again.weight": -2}}).verify(network, x)


def test_states_keep_the_versions_of_their_layers() -> None:
    class Versioned(nn.Sequential):
        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *args: Any) -> None:
            assert local["version"] == 2  # As MNASNet's do.
            super()._load_from_state_dict(state, prefix, local, *args)

    network = Versioned(*convolutional()).double().eval()
    symmetry, state = pp.find_symmetry(network, X), network.state_dict()
    alignment = pp.align([state, state], symmetry)
    for each in (
        symmetry.apply(symmetry.sample(), state),
        pp.canonical_order(state, symmetry),
        alignment.state_dicts[1],
        pp.reset_statistics(network, state, [X]),
    ):
        network.load_state_dict(each)


def test_git_re_basins_dictionary_of_a_network() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(4, 2)),
    )
    symmetry = pp.find_symmetry(network.double().eval(), X)
    assert symmetry.axes_to_perm == {
        "0.weight": ("P0", None, None, None),
        **{f"{name}": ("P0",) for name in ("0.bias", "1.weight", "1.bias")},
        **{f"1.running_{moment}": ("P0",) for moment in ("mean", "var")},
        "5.weight": (None, "P0"),
    }
    again = pp.PermutationSymmetry.from_axes_to_perm(symmetry.axes_to_perm)
    again.verify(network, X)
    assert again == symmetry and again.group == symmetry.group


@pytest.mark.parametrize("reset", [False, True])
def test_the_barrier_to_a_permuted_copy_vanishes(reset: bool) -> None:
    [network] = networks(1)
    symmetry, state = pp.find_symmetry(network, X), state_of(network)

    def outputs(values: Mapping[str, Tensor]) -> Tensor:
        if reset:
            values = pp.reset_statistics(network, values, [X])
        return functional_call(network, dict(values), X)

    y = outputs(state).detach()

    def loss(values: Mapping[str, Tensor]) -> Tensor:
        return mse_loss(outputs(values), y)

    copy = symmetry.apply(
        {group: torch.arange(n).roll(1) for group, n in symmetry.groups.items()}, state
    )
    copy["1.num_batches_tracked"] = copy["1.num_batches_tracked"] + 7
    barrier = pp.interpolation_barrier(loss, state, copy, symmetry, num_points=5)
    assert barrier.original.barrier > 1e-3
    assert barrier.aligned.barrier == pytest.approx(0.0, abs=1e-12)


def test_statistics_are_those_of_the_data() -> None:
    network = convolutional().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    halves = [X[:8], X[8:]]
    state = pp.reset_statistics(network, network.state_dict(), halves)
    channels = [network[0](half).movedim(1, 0).flatten(1) for half in halves]
    means, variances = (
        torch.stack([getattr(c, moment)(1) for c in channels]).mean(0) for moment in ("mean", "var")
    )
    torch.testing.assert_close(state["1.running_mean"], means)
    torch.testing.assert_close(state["1.running_var"], variances)
    assert not torch.equal(state["5.running_mean"], before["5.running_mean"])
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert not any(layer.training for layer in network.modules())


def test_statistics_need_layers_and_data() -> None:
    with pytest.raises(ValueError, match="no layer of the network has running moments"):
        pp.reset_statistics(nn.Linear(2, 2), nn.Linear(2, 2).state_dict(), [torch.ones(1, 2)])
    with pytest.raises(ValueError, match="no batch"):
        pp.reset_statistics(convolutional(), convolutional().state_dict(), [])


def test_several_inputs_of_a_network() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.norm(x + y)

    x, y = torch.randn(6, 2), torch.randn(6, 2)
    state = pp.reset_statistics(Sum(), Sum().state_dict(), [(x, y)])
    torch.testing.assert_close(state["norm.running_mean"], (x + y).mean(0), check_dtype=False)


def test_state_dicts_that_do_not_fit_are_refused() -> None:
    [network] = networks(1)
    symmetry, state = pp.find_symmetry(network, X), state_of(network)
    wider = {**state, "7.bias": torch.zeros(3)}
    for other, what in (
        (wider, r"of shape \(3,\)"),
        ({k: v for k, v in state.items() if k != "7.bias"}, "absent"),
    ):
        with pytest.raises(ValueError, match=rf"'7.bias' is {what} in state_dict 1"):
            pp.align([state, other], symmetry)
    with pytest.raises(ValueError, match="no samples"):
        pp.align([], symmetry)
    nothing = pp.find_symmetry(nn.Linear(25, 2).double(), X.flatten(1))
    with pytest.raises(ValueError, match="no group"):
        pp.align([state], nothing)


def test_draws_of_several_chains_are_state_dicts_too() -> None:
    symmetry = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (3,)})
    alignment = pp.align({"w": torch.randn(2, 4, 3), "other": torch.randn(2, 4)}, symmetry)
    each = alignment.state_dicts
    assert len(each) == 8
    for number, (chain, draw) in enumerate(itertools.product(range(2), range(4))):
        assert torch.equal(each[number]["w"], alignment.samples["w"][chain, draw])
        assert torch.equal(each[number]["other"], alignment.samples["other"][chain, draw])
    single = pp.align({"w": torch.randn(3)}, symmetry)
    assert torch.equal(single.state_dicts[0]["w"], single.samples["w"])
