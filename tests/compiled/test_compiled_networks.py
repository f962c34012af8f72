"""Networks that are compiled, or call what is, serve as they were written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from examples.bayesian import groups_of, normal
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_perm as pp
from pyro_perm.program._torch_internals import without_compiler
from pyro_perm.program.call import Call
from pyro_perm.program.full_data import survey

X, LABELS = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])


class Compiler:
    """A backend of ``torch.compile`` that counts what it compiles."""

    def __init__(self) -> None:
        self.num_compiled = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.num_compiled += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_state():
    torch.compiler.reset()
    with pyro.settings.context(module_local_params=True):
        yield
    torch.compiler.reset()


@pytest.fixture
def compiler() -> Compiler:
    return Compiler()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return Network().double()


def compiled_network(compiler: Compiler) -> Any:
    return torch.compile(plain_network(), backend=compiler)


class CallsCompiled(nn.Module):
    """A network that calls a compiled function."""

    def __init__(self, compiler: Compiler) -> None:
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.randn(s).double()) for s in ((4, 3), (2, 4)))
        self._hidden = torch.compile(lambda x, w: torch.tanh(x @ w.T), backend=compiler)

    def forward(self, x: Tensor) -> Tensor:
        return self._hidden(x, self.w) @ self.v.T


def compiled_in_place(compiler: Compiler) -> nn.Module:
    network = plain_network()
    network.compile(backend=compiler)
    return network


@pytest.mark.parametrize(
    ("make", "group"),
    [
        (
            compiled_network,
            "_orig_mod.inner.weight[-2] _orig_mod.inner.bias[-1] _orig_mod.outer.weight[-1]",
        ),
        (compiled_in_place, "inner.weight[-2] inner.bias[-1] outer.weight[-1]"),
        (CallsCompiled, "w[-2] v[-1]"),
    ],
)
def test_a_symmetry_is_found_under_the_names_of_the_state(make, group, compiler):
    network = make(compiler)
    symmetry = pp.find_symmetry(network, X)
    assert groups_of(symmetry) == {frozenset(group.split())}
    assert symmetry.spec["P0"].keys() <= network.state_dict().keys()
    symmetry.verify(network, X)
    assert compiler.num_compiled == 0
    network(X)
    assert compiler.num_compiled == 1


def test_states_of_compiled_networks_are_aligned(compiler):
    first, second = (compiled_network(compiler) for _ in range(2))
    symmetry = pp.find_symmetry(first, X)
    element = symmetry.sample()
    second.load_state_dict({**second.state_dict(), **symmetry.apply(element, first.state_dict())})
    aligned = pp.align(second.state_dict(), symmetry, first.state_dict()).samples
    for name, value in first.state_dict().items():
        assert torch.equal(aligned[name], value)


# PyTorch asks for the gradient of whatever compiled code is called with.
NOT_A_LEAF = "ignore:The .grad attribute of a Tensor that is not a leaf Tensor"


def bound_and_losses(network: nn.Module, elbo: Any) -> list[float]:
    model = pp.bayesian(network, likelihood=pp.likelihoods.categorical)
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in), permute=False)
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), elbo)
    losses = [svi.step(X, LABELS) for _ in range(2)]
    return [pp.symmetrized_elbo(model, guide, X, LABELS, num_samples=4).lower, *losses]


@pytest.mark.filterwarnings(NOT_A_LEAF)
@pytest.mark.parametrize("elbo", [Trace_ELBO(), pp.LocalReparametrization(Trace_ELBO())])
def test_guides_of_compiled_networks_are_those_of_the_networks(elbo, compiler):
    found = bound_and_losses(compiled_network(compiler), elbo)
    assert found == pytest.approx(bound_and_losses(plain_network(), elbo), rel=1e-5)


def test_rows_that_compiled_code_looks_up_are_seen(compiler):
    @torch.compile(backend=compiler)
    def rows_of(data, indices):
        return data[indices]

    def model(y):
        w = normal("w", 2)
        with pyro.plate("data", len(y), subsample_size=2) as indices:
            pyro.sample("y", pyro.distributions.Normal(w.sum(), 1.0), obs=rows_of(y, indices))

    assert survey(Call(model, (torch.randn(6),), {})).looked_up == {"data"}
    assert compiler.num_compiled == 0


def test_a_program_that_is_being_compiled_is_left_alone(compiler):
    seen = []

    @torch.compile(backend=compiler)
    def program(x):
        with without_compiler():
            seen.append(compiled(x + 1))
        return compiled(x)

    @torch.compile(backend=compiler)
    def compiled(x):
        seen.append(torch.compiler.is_compiling())
        return 2 * x

    assert torch.equal(program(X), 2 * X)
    assert seen[0] is False
    assert torch.equal(seen[1], 2 * (X + 1))
