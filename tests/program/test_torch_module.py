"""Plain networks: parameters and running moments are permuted, outputs must not change."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from examples.bayesian import groups_of, normal, written
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.program.call import Call
from pyro_perm.program.opening import open_program
from pyro_perm.program.torch_module import TorchModule

IMAGES, SEQUENCES = torch.randn(3, 1, 5, 5).double(), torch.randn(2, 3, 4).double()


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2)),
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 3, bias=False), nn.Linear(3, 4)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().T.contiguous())
        self.register_buffer("shift", torch.ones(3).double())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.encode(x))
        return {"code": h.norm(dim=-1), "decoded": self.decode(h)}


NETWORKS: list[tuple[Any, Tensor, tuple[str, ...]]] = [
    (
        convolutional,
        IMAGES,
        (
            "0.weight[-4] 0.bias[-1] 1.weight[-1] 1.bias[-1] 1.running_mean[-1] "
            "1.running_var[-1] 4.weight[-1:i9]",
            "4.weight[-2] 4.bias[-1] 6.weight[-1]",
        ),
    ),
    (
        Recurrent,
        SEQUENCES,
        (
            "rnn.weight_ih_l0[-2:o4] rnn.weight_hh_l0[-2:o4] rnn.weight_hh_l0[-1] "
            "rnn.bias_ih_l0[-1:o4] rnn.bias_hh_l0[-1:o4] head.weight[-1]",
        ),
    ),
    (TiedAutoencoder, SEQUENCES, ("encode.weight[-2] decode.weight[-1]",)),
    (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)
        ),
        SEQUENCES,
        (
            "0.bias[-1] 0.parametrizations.weight.original0[-2] "
            "0.parametrizations.weight.original1[-2] 2.weight[-1]",
        ),
    ),
]


@pytest.mark.parametrize(("build", "x", "groups"), NETWORKS)
def test_a_permuted_state_dict_is_the_same_function(
    build: Any, x: Tensor, groups: tuple[str, ...]
) -> None:
    network = build().double().eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0)  # norms start with the same values for all channels
    symmetry = pp.find_symmetry(network, x)
    assert groups_of(symmetry) == written(groups)
    before, state = network(x), network.state_dict()
    g = {group: torch.arange(n).roll(1) for group, n in symmetry.groups.items()}
    moved = symmetry.apply(g, {name: state[name] for name in symmetry.sites})
    assert not any(torch.equal(moved[name], state[name]) for name in symmetry.sites)
    network.load_state_dict({**state, **moved})
    torch.testing.assert_close(network(x), before)


def test_running_moments_are_no_sites_while_training() -> None:
    network = convolutional().double()
    moments = network[1].running_mean.clone()
    with pytest.warns(UserWarning, match=r"'1.running_mean' \(and 1 more\) is updated"):
        symmetry = pp.find_symmetry(network, IMAGES)
    assert "1.weight" in symmetry.sites and "1.running_mean" not in symmetry.sites
    assert torch.equal(network[1].running_mean, moments) and network.training


def test_a_spec_by_hand_is_verified_on_the_outputs() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    hidden = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    pp.PermutationSymmetry({"hidden": hidden}).verify(network, SEQUENCES)
    with pytest.raises(pp.SymmetryVerificationError, match="site 'returned value 0' by"):
        pp.PermutationSymmetry({"hidden": {"0.bias": 0, "2.weight": 1}}).verify(network, SEQUENCES)
    with pytest.raises(
        ValueError, match=r"'3.weight', which is no parameter of the network .*'0.weight'"
    ):
        pp.PermutationSymmetry({"hidden": {"3.weight": 0}}).verify(network, SEQUENCES)


def test_units_with_odd_activations_flip_their_signs() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    symmetry = pp.find_symmetry(network, SEQUENCES, signs=True)
    assert symmetry.signed_groups == ("P0",)


def test_reasons_name_outputs_inputs_and_buffers() -> None:
    class Shifted(TiedAutoencoder):
        def forward(self, x: Tensor) -> Tensor:
            return self.decode(self.encode(x) + self.shift)

    reasons = pp.find_symmetry(Shifted().double(), SEQUENCES).reasons
    assert "tied to dim 0 of buffer 'shift'" in reasons["encode.weight[-2]"]
    assert "tied to dim 2 of argument 0" in reasons["encode.weight[-1]"]
    assert "tied to dim 2 of returned value 0" in reasons["decode.weight[-2]"]


def test_complex_outputs() -> None:
    class Spectrum(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.complex(super().forward(x), super().forward(2 * x))

    network = Spectrum(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    hidden = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    pp.PermutationSymmetry({"hidden": hidden}).verify(network, SEQUENCES)


def test_a_module_that_samples_is_a_pyro_model() -> None:
    class Sampling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ normal("w1", 4, 3)) @ normal("w2", 3)

    assert groups_of(pp.find_symmetry(Sampling(), SEQUENCES)) == written(["w1[-1] w2[-1]"])
    with open_program(Call(Sampling(), (SEQUENCES,))) as program:
        assert not isinstance(program, TorchModule)


def test_modules_parameters_do_not_reach_the_store() -> None:
    pp.find_symmetry(nn.Linear(4, 2).double(), SEQUENCES)
    assert not list(pyro.get_param_store().keys())


def test_deep_networks_of_saturating_units_are_verified() -> None:
    """With standard normal weights, rounding errors grow as large as the outputs."""
    layers = (layer for _ in range(50) for layer in (nn.Linear(48, 48), nn.ReLU6()))
    network = nn.Sequential(*layers).double()
    symmetry = pp.find_symmetry(network, torch.randn(3, 48).double())
    assert len(symmetry.groups) == 49


class ChannelsLast(nn.Module):
    """Norm over the channels, then pooling to one place, as in ConvNeXt and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize("options", [{}, {"signs": True}, {"scales": True}])
def test_pooled_channels_that_are_last_in_memory(options: dict[str, bool]) -> None:
    symmetry = pp.find_symmetry(ChannelsLast().double(), IMAGES, **options)
    written_out = "conv.weight[-4] conv.bias[-1] norm.weight[-1] norm.bias[-1] head.weight[-1]"
    assert groups_of(pp.find_symmetry(ChannelsLast().double(), IMAGES)) == written([written_out])
    assert len(symmetry.groups) == 1


def test_entries_taken_by_their_place_in_memory_stay() -> None:
    class Restrided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).as_strided((4, 4), (1, 4)))

    symmetry = pp.find_symmetry(Restrided().double(), torch.randn(4, 4).double())
    assert not symmetry
    assert "entries by their place in memory" in symmetry.reasons["first.weight[-2]"]
