"""Losses without traces are the traced losses, at the same draws."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from functional_noise import GiveNoise, assert_same, noise_of
from marks import on_each
from problems import (
    PROBLEMS,
    flattened_channels,
    hierarchical,
    local_latents,
    normal,
    one_hidden_layer,
    recurrent,
    two_hidden_layers,
    units_in_plate,
    with_signs,
)
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample

import pyro_perm as pp
from pyro_perm.closed_form import ClosedFormTrace_ELBO

SERVED = [
    one_hidden_layer(),
    two_hidden_layers(),
    flattened_channels(),
    recurrent(),
    hierarchical(),
    units_in_plate(),
    with_signs(one_hidden_layer(3)),
]


def started(problem, **kwargs):
    """A base guide with random parameters that has run."""
    guide = problem.base(**kwargs)
    guide(*problem.args)
    return guide


@on_each(SERVED)
def test_value_and_gradient_are_those_of_the_traced_symmetrized_loss(problem):
    guide = started(problem)
    fast = pp.FunctionalSymmetrized_ELBO(symmetry=problem.symmetry(), estimator=pp.Exact())
    fast.loss(problem.model, guide, *problem.args)  # what the first call draws is not compared
    traced = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry(), estimator=pp.Exact())
    noise = noise_of(guide, 3)
    with GiveNoise(noise):
        expected = traced.differentiable_loss(problem.model, guide, *problem.args)
    pyro.set_rng_seed(3)
    assert_same(fast.differentiable_loss(problem.model, guide, *problem.args), expected, guide)


def test_value_and_gradient_are_those_of_a_symmetrized_guide():
    problem = two_hidden_layers()
    guide = problem.guide(permute=False)
    guide(*problem.args)
    fast = pp.FunctionalSymmetrized_ELBO()(problem.model, guide)
    fast(*problem.args)
    with GiveNoise(noise_of(guide.base, 3)):
        traced = pp.TraceSymmetrized_ELBO()
        expected = traced.differentiable_loss(problem.model, guide, *problem.args)
    pyro.set_rng_seed(3)
    assert_same(fast(*problem.args), expected, guide)


class Rectifiers(PyroModule):
    """A layer of units to be rescaled, its prior scale learned or not."""

    def __init__(self, learns):
        super().__init__()
        self.log_scale = torch.tensor(0.3)
        if learns:
            self.log_scale = torch.nn.Parameter(self.log_scale)

    def forward(self, x, y=None):
        prior = dist.Normal(torch.zeros(3, 2), self.log_scale.exp())
        w1, w2 = pyro.sample("w1", prior.to_event(2)), normal("w2", 1, 3)
        f = (torch.relu(x @ w1.mT) @ w2.mT).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, 0.5), obs=y)

    symmetry = pp.PermutationSymmetry(
        {"units": {"w1": pp.Axis(0, scale=1), "w2": pp.Axis(1, scale=-1)}}
    )


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
def test_scales_are_counted_as_in_the_traced_loss(learns, wrap):
    model, (x, y) = Rectifiers(learns), one_hidden_layer().args
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(base, model.symmetry) if wrap else base
    symmetry = None if wrap else model.symmetry
    fast = pp.FunctionalSymmetrized_ELBO(symmetry=symmetry)
    traced = pp.TraceSymmetrized_ELBO(symmetry=symmetry)
    module = fast(model, guide)
    module(x, y)
    with GiveNoise(noise_of(base, 3)):
        expected = traced.differentiable_loss(model, guide, x, y)
    pyro.set_rng_seed(3)
    if learns:
        assert_same(module(x, y), expected, module)
    else:
        assert_same(module(x, y), expected, base)


def test_learned_priors_of_rescaled_sites_are_read_anew_after_a_first_call_without_gradients():
    model, (x, y) = Rectifiers(True), one_hidden_layer().args
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in), model.symmetry)
    with torch.no_grad():
        guide(x, y)
    assert not guide.priors.are_constant


def test_vectorized_particles_need_constant_priors_of_rescaled_sites():
    model, (x, y) = Rectifiers(True), one_hidden_layer().args
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    settings = {"num_particles": 2, "vectorize_particles": True, "symmetry": model.symmetry}
    with pytest.raises(ValueError, match="leave out vectorize_particles=True"):
        pp.FunctionalSymmetrized_ELBO(**settings).loss(model, guide, x, y)
    model = Rectifiers(False)
    pyro.clear_param_store()
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    fast, traced = (
        pp.FunctionalSymmetrized_ELBO(**settings),
        pp.TraceSymmetrized_ELBO(symmetry=model.symmetry),
    )
    fast.loss(model, guide, x, y)
    noise = noise_of(guide, 3, 2)
    expected = []
    for k in range(2):
        with GiveNoise({site: e[k] for site, e in noise.items()}):
            expected.append(traced.differentiable_loss(model, guide, x, y))
    pyro.set_rng_seed(3)
    assert_same(fast.differentiable_loss(model, guide, x, y), torch.stack(expected).mean(), guide)


@on_each(SERVED)
def test_value_and_gradient_are_those_of_the_traced_closed_form_loss(problem):
    guide = started(problem)
    fast = pp.FunctionalMeanField_ELBO()
    fast.loss(problem.model, guide, *problem.args)
    with GiveNoise(noise_of(guide, 3)):
        traced = ClosedFormTrace_ELBO()
        expected = traced.differentiable_loss(problem.model, guide, *problem.args)
    pyro.set_rng_seed(3)
    assert_same(fast.differentiable_loss(problem.model, guide, *problem.args), expected, guide)


@pytest.mark.parametrize(
    "problem", [two_hidden_layers(), hierarchical(), units_in_plate()], ids=str
)
def test_vectorized_particles_are_those_of_traced_losses_one_by_one(problem):
    guide = started(problem)
    fast = pp.FunctionalSymmetrized_ELBO(
        symmetry=problem.symmetry(), num_particles=3, vectorize_particles=True
    )
    fast.loss(problem.model, guide, *problem.args)
    traced = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry())
    noise = noise_of(guide, 3, 3)
    each = []
    for particle in range(3):
        with GiveNoise({name: part[particle] for name, part in noise.items()}):
            each.append(traced.differentiable_loss(problem.model, guide, *problem.args))
    pyro.set_rng_seed(3)
    loss = fast.differentiable_loss(problem.model, guide, *problem.args)
    assert_same(loss, torch.stack(each).mean(), guide)


def test_particles_one_by_one_are_averaged():
    problem = one_hidden_layer()
    guide = started(problem)
    one, many = (pp.FunctionalMeanField_ELBO(num_particles=n) for n in (1, 4))
    for loss in (one, many):
        loss.loss(problem.model, guide, *problem.args)
    pyro.set_rng_seed(5)
    losses = [one.loss(problem.model, guide, *problem.args) for _ in range(4)]
    pyro.set_rng_seed(5)
    mean = many.loss(problem.model, guide, *problem.args)
    assert mean == pytest.approx(sum(losses) / 4)


@pytest.mark.parametrize("module_local", [False, True])
def test_svi_and_an_optimizer_of_torch_take_the_same_steps(module_local):
    pyro.settings.set(module_local_params=module_local)
    problem = one_hidden_layer()
    results = []
    for run in ("svi", "torch"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = started(problem)
        loss = pp.FunctionalSymmetrized_ELBO(symmetry=problem.symmetry())
        loss.loss(problem.model, guide, *problem.args)
        pyro.set_rng_seed(1)
        if run == "svi":
            svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 0.05}), loss)
            losses = [svi.step(*problem.args) for _ in range(5)]
        else:
            module = loss(problem.model, guide)
            optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
            losses = []
            for _ in range(5):
                optimizer.zero_grad()
                value = module(*problem.args)
                value.backward()
                optimizer.step()
                losses.append(value.item())
        results.append((losses, [p.detach().clone() for p in guide.parameters()]))
    (one, moved), (other, also_moved) = results
    assert one == pytest.approx(other)
    for parameter, twin in zip(moved, also_moved, strict=True):
        assert torch.allclose(parameter, twin)


class Net(PyroModule):
    """A network of torch's layers, with a learned prior scale and subsampled data."""

    def __init__(self):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.tensor(0.3))
        self.fc1 = PyroModule[torch.nn.Linear](2, 3)
        self.fc2 = PyroModule[torch.nn.Linear](3, 1)
        self.fc1.weight = PyroSample(
            lambda _: dist.Normal(0.0, self.log_scale.exp()).expand([3, 2]).to_event(2)
        )
        self.fc1.bias = PyroSample(dist.Laplace(torch.zeros(3), 1.0).to_event(1))

    def forward(self, x, y=None):
        f = self.fc2(torch.tanh(self.fc1(x))).squeeze(-1)
        with pyro.plate("data", 50, subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Normal(f, 0.5), obs=y)


@pytest.mark.parametrize("vectorize", [False, True])
def test_pyro_modules_with_parameters_of_their_own_learn_them(vectorize):
    model = Net()
    x, y = one_hidden_layer().args
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    guide(x, y)
    particles = 2 if vectorize else 1
    fast = pp.FunctionalMeanField_ELBO(num_particles=particles, vectorize_particles=vectorize)
    module = fast(model, guide)
    module(x, y)
    noise = noise_of(guide, 3, *([2] if vectorize else []))
    traced, expected = ClosedFormTrace_ELBO(), []
    for k in range(particles):
        with GiveNoise({site: e[k] if vectorize else e for site, e in noise.items()}):
            expected.append(traced.differentiable_loss(model, guide, x, y))
    pyro.set_rng_seed(3)
    assert_same(module(x, y), torch.stack(expected).mean(), module)


def test_a_minibatch_counts_for_all_data():
    def model(x):
        w = normal("w", 2)
        with pyro.plate("data", 100, subsample=x):
            pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=x)

    guide = AutoNormal(model)
    x = torch.arange(10.0)
    guide(x)
    loss = pp.FunctionalMeanField_ELBO()
    loss.loss(model, guide, x)
    with GiveNoise(noise_of(guide, 3)):
        expected = ClosedFormTrace_ELBO().loss(model, guide, x)
    pyro.set_rng_seed(3)
    assert loss.loss(model, guide, x) == pytest.approx(expected)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_step_makes_no_tensor_on_the_default_device(particles):
    zeros, x, y = torch.zeros(4, 2), *one_hidden_layer().args

    def model(x, y):
        w1 = pyro.sample("w1", dist.Normal(zeros, torch.ones_like(zeros)).to_event(2))
        w2 = pyro.sample("w2", dist.Normal(zeros[:, 0], torch.ones_like(zeros[:, 0])).to_event(1))
        f = torch.tanh(x @ w1.mT) @ w2
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, torch.ones_like(y)), obs=y)

    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    fast = pp.FunctionalSymmetrized_ELBO(
        symmetry=pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}}),
        num_particles=particles,
        vectorize_particles=particles > 1,
    )
    fast.loss(model, guide, x, y)
    with torch.device("meta"):
        fast.loss_and_grads(model, guide, x, y)
    assert all(p.grad.isfinite().all() for p in guide.parameters())


def test_another_model_or_guide_is_settled_anew():
    loss = pp.FunctionalSymmetrized_ELBO()
    for problem in (one_hidden_layer(3), one_hidden_layer(5)):
        pyro.clear_param_store()
        guide = started(problem)
        loss.loss(problem.model, guide, *problem.args)
        pyro.set_rng_seed(1)
        known = pp.FunctionalSymmetrized_ELBO(symmetry=problem.symmetry())
        known.loss(problem.model, guide, *problem.args)
        pyro.set_rng_seed(2)
        one = loss.loss(problem.model, guide, *problem.args)
        pyro.set_rng_seed(2)
        assert one == pytest.approx(known.loss(problem.model, guide, *problem.args))


LOSSES = [pp.FunctionalMeanField_ELBO, pp.FunctionalSymmetrized_ELBO]


@pytest.mark.parametrize("loss", LOSSES)
def test_other_guides_are_refused_by_name(loss):
    problem = one_hidden_layer()

    class Own(AutoNormal):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    class Wider(AutoNormal):
        def _get_loc_and_scale(self, name):
            loc, scale = super()._get_loc_and_scale(name)
            return loc, 2 * scale

    for guide in (kind(problem.model) for kind in (AutoDiagonalNormal, Own, Wider)):
        with pytest.raises(TypeError, match=f"but the guide is a {type(guide).__name__}"):
            loss().loss(problem.model, guide, *problem.args)


def test_the_loss_of_plain_guides_refuses_symmetrized_ones():
    problem = one_hidden_layer()
    with pytest.raises(TypeError, match="use FunctionalSymmetrized_ELBO"):
        pp.FunctionalMeanField_ELBO().loss(problem.model, problem.guide(), *problem.args)


def test_subsampled_latents_are_refused_by_name():
    problem = local_latents()
    with pytest.raises(TypeError, match="site 'shift' lies in the subsampled plate 'data'"):
        pp.FunctionalMeanField_ELBO().loss(problem.model, started(problem), *problem.args)


@pytest.mark.parametrize("handler", [poutine.scale(scale=0.5), poutine.mask(mask=False)])
def test_weighed_priors_are_refused_by_name(handler):
    problem = one_hidden_layer()
    guide = started(problem)
    with pytest.raises(TypeError, match="scales or masks the prior of site 'w1'"):
        pp.FunctionalMeanField_ELBO().loss(handler(problem.model), guide, *problem.args)


def test_sites_that_the_guide_does_not_draw_are_refused_by_name():
    def model(more):
        normal("w", 2)
        if more == 1:
            normal("v", 2)
        elif more == 0:
            pyro.sample("w2", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    guide = AutoNormal(model)
    guide(0)
    loss = pp.FunctionalMeanField_ELBO()
    loss.loss(model, guide, 0)
    with pytest.raises(TypeError, match="samples site 'v', which the guide does not draw"):
        loss.loss(model, guide, 1)
    conditioned = pyro.condition(model, data={"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="site 'w' is observed, but the guide draws it"):
        loss.loss(conditioned, guide, 0)
    with pytest.raises(TypeError, match="the guide draws site 'w', which this run"):
        loss.loss(lambda _: None, guide, 0)


def test_a_guide_of_another_symmetry_than_the_loss_is_refused():
    problem = two_hidden_layers()
    symmetry = pp.PermutationSymmetry({"first": problem.spec["first"]})
    loss = pp.FunctionalSymmetrized_ELBO(symmetry=symmetry)
    with pytest.raises(ValueError, match="symmetrized over another symmetry"):
        loss.loss(problem.model, problem.guide(), *problem.args)


def test_every_problem_is_served_or_refused_by_name():
    """So that no new problem goes untried."""
    assert {p.name for p in PROBLEMS} - {p.name for p in SERVED} == {
        "local_latents",  # refused
        "three_hidden_layers",
        "gated_units",
    }
