"""What is no state of a network, or of another one, is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyro_perm as pp

X = torch.linspace(-1, 1, 21).view(7, 3).double()


def network() -> nn.Module:
    return (
        nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
        .double()
        .eval()
    )


@pytest.fixture
def symmetry() -> pp.PermutationSymmetry:
    return pp.find_symmetry(network(), X)


def swap() -> dict[str, torch.Tensor]:
    return {"P0": torch.tensor([1, 0, 2, 3, 4])}


@pytest.mark.parametrize(
    ("element", "error", "message"),
    [
        ([1, 0, 2, 3, 4], TypeError, "'P0': an element is a tensor of integers.* a list"),
        (torch.arange(5.0), TypeError, "but this is a torch.float"),
        (torch.tensor([0, 0, 1, 2, 3]), ValueError, "takes some twice and leaves others out"),
        (torch.tensor([0, 1, 2, 3, 7]), ValueError, "lie between 0 and 4"),
        (torch.arange(4), ValueError, "5 units, but the permutation has 4"),
    ],
)
def test_elements_are_permutations(symmetry, element, error, message):
    with pytest.raises(error, match=message):
        symmetry.apply({"P0": element}, network().state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_wrapper_s_names_are_refused_where_nothing_would_be_moved(symmetry, prefix):
    state = network().state_dict()
    named = {prefix + name: value for name, value in state.items()}
    message = rf"'{prefix}0.weight' of .* is site '0.weight' of the symmetry under another name"
    with pytest.raises(ValueError, match=message):
        symmetry.apply(swap(), named)
    for of_states in (pp.align, lambda states, group: pp.canonical_order(states[0], group)):
        with pytest.raises(ValueError, match="under another name"):
            of_states([named, named], symmetry)
    other_way = pp.PermutationSymmetry(
        {"P0": {prefix + site: axes for site, axes in symmetry.spec["P0"].items()}}
    )
    with pytest.raises(ValueError, match="under another name"):
        other_way.apply(swap(), state)


def test_some_sites_alone_are_moved_as_ever(symmetry):
    bias = torch.arange(5.0)
    assert symmetry.apply(swap(), {"0.bias": bias})["0.bias"].tolist() == [1, 0, 2, 3, 4]
    other = {"elsewhere": torch.ones(2)}
    assert symmetry.apply(swap(), other) == other


def test_networks_and_arrays_are_no_states(symmetry):
    state, net = network().state_dict(), network()
    arrays = {name: value.numpy() for name, value in state.items()}
    for values, message in (
        (net, r"but is a Sequential: give a network's state_dict\(\)"),
        (arrays, "'0.weight' of .* must be a tensor, but is a ndarray"),
    ):
        for use in (
            lambda values: symmetry.apply(swap(), values),
            lambda values: pp.align([values, values], symmetry),
            lambda values: pp.canonical_order(values, symmetry),
            lambda values: pp.interpolation_barrier(len, values, values, symmetry),
            lambda values: pp.reset_statistics(net, values, [X]),
        ):
            with pytest.raises(TypeError, match=message):
                use(values)


def test_one_input_is_no_list_of_batches(symmetry):
    with pytest.raises(TypeError, match=r"this is a tensor: give \[x\] for one batch"):
        pp.reset_statistics(network(), network().state_dict(), X)


def test_a_line_between_precisions_is_in_the_first_s(symmetry):
    first, second = network().float().state_dict(), network().state_dict()
    dtypes = []

    def loss(state):
        dtypes.append(state["0.weight"].dtype)
        return state["0.weight"].square().sum()

    pp.interpolation_barrier(loss, first, second, symmetry, num_points=3)
    assert set(dtypes) == {torch.float32}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.jit.script])
def test_wrappers_that_run_at_no_other_parameters_are_refused(wrap):
    with pytest.raises(TypeError, match=r"functional_call does not run a .*: give the network"):
        pp.find_symmetry(wrap(network()), X)


@pytest.mark.parametrize("function", [pp.align, pp.canonical_order])
def test_what_is_no_symmetry_is_refused(function):
    with pytest.raises(TypeError, match=r"is a NoneType: find it with find_symmetry"):
        function({"w": torch.zeros(3, 2)}, None)
