"""Evaluation changes nothing: buffers, parameters, modes, random states, the parameter store."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample

import pyro_perm as pp
from pyro_perm.program.restoration import restored


class Noted(torch.nn.Module):
    """Counts its calls in a buffer that it replaces, and puts itself into training mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        self.train()
        return x


class Network(PyroModule):
    """Batch normalization in training mode, and a layer that changes itself."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        self.noted = Noted().eval()
        for name, shape in (("w1", (3, 2)), ("w2", (1, 3))):
            setattr(self, name, PyroSample(dist.Normal(torch.zeros(shape), 1.0).to_event(2)))

    def forward(self, x, y):
        x = self.noted(self.norm(x))
        f = (torch.tanh(x @ self.w1.mT) @ self.w2.mT).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, 0.5), obs=y)


X, Y = torch.randn(8, 2).double(), torch.randn(8).double()


@pytest.fixture
def trained():
    model = Network()
    guide = pp.AutoSymmetrized(
        AutoNormal(model, init_loc_fn=pp.init_to_fan_in),
        pp.PermutationSymmetry({"units": {"w1": 0, "w2": 1}}),
    )
    guide(X, Y)
    return model, guide


def state(*modules):
    tensors = {
        (k, name): value.detach().clone()
        for k, module in enumerate(modules)
        for name, value in module.state_dict().items()
    }
    modes = [part.training for module in modules for part in module.modules()]
    store = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return tensors | store, modes


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def symmetrized_elbo(model, guide):
    return pp.symmetrized_elbo(model, guide, X, Y, num_samples=4, progress=False)


def mutual_information(model, guide):
    return pp.mutual_information(guide, X, Y, num_samples=4, progress=False)


def to_arviz(model, guide):
    return pp.to_arviz(model, guide, X, Y, num_samples=4, num_prior_samples=3, progress=False)


def predict(model, guide):
    return pp.predict(model, guide, X, Y, num_samples=4, batch_size=5, progress=False)


def unit_overlap(model, guide):
    return pp.unit_overlap(guide, X, Y, num_samples=3)


def negative_log_joint(model, guide):
    loss = pp.negative_log_joint(model, X, Y)
    return [loss(guide.median()) for _ in range(3)]


EVALUATIONS = [
    symmetrized_elbo,
    mutual_information,
    to_arviz,
    predict,
    unit_overlap,
    negative_log_joint,
]


@pytest.mark.parametrize("evaluate", EVALUATIONS, ids=lambda function: function.__name__)
def test_evaluation_leaves_everything_as_it_was(trained, evaluate):
    before, random_before = state(*trained), random_states()
    evaluate(*trained)
    (tensors, modes), (expected, expected_modes) = state(*trained), before
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        assert torch.equal(value, expected[name]), name
    assert modes == expected_modes
    assert random_states() == random_before
    assert all(p.grad is None for module in trained for p in module.parameters())


def test_the_evidence_leaves_random_states_as_they_were():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    before = random_states()
    pp.log_evidence(model, Y, num_particles=3, num_temperatures=3, progress=False)
    assert random_states() == before


def test_the_same_state_gives_the_same_draws_and_another_one_others(trained):
    one, two = (predict(*trained).draws for _ in range(2))
    torch.rand(())
    assert torch.equal(one, two)
    assert not torch.equal(predict(*trained).draws, one)


def test_errors_leave_everything_as_it_was(trained):
    model, _ = trained
    before, random_before = state(model), random_states()
    with pytest.raises(ValueError, match="the solution has no 'w2'"):
        pp.negative_log_joint(model, X, Y)({"w1": torch.zeros(3, 2)})
    assert random_states() == random_before
    for name, value in state(model)[0].items():
        assert torch.equal(value, before[0][name])


def test_what_comes_into_being_keeps_its_first_value():
    """A lazy layer is initialized in place: to restore that would leave it without values."""
    layer = torch.nn.LazyLinear(3)
    with restored(layer) as writes, writes:
        layer(X)
    assert layer.weight.shape == (3, 2) and layer.weight.abs().sum() > 0
    expected = layer.weight.detach().clone()
    with restored(layer) as writes, writes, torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(float("nan"))
    assert torch.equal(layer.weight, expected) and layer.bias.isfinite().all()


def test_a_later_run_may_write_what_the_first_one_wrote():
    norm = torch.nn.BatchNorm1d(2)
    with restored(norm) as writes:
        with writes:
            norm(X)
        norm(X + 1)
        norm(X + 2)
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(2))


def test_buffers_that_are_replaced_or_new_are_told_apart():
    class Caching(Noted):
        def forward(self, x):
            if not hasattr(self, "mask"):
                self.register_buffer("mask", torch.ones(2), persistent=False)
            return super().forward(x)

    module = Caching()
    with restored(module) as writes, writes:
        module(X)
        assert module.calls == 1
    assert module.calls == 0
    assert torch.equal(module.mask, torch.ones(2))  # What the module made for itself stays.
