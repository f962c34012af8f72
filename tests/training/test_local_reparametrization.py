"""Outputs drawn in place of weights: the same law of each, the same expectation, less noise."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import slow
from problems import one_hidden_layer
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.nn import functional

import pyro_perm as pp
from pyro_perm.functional.local_layers import LocalLayers


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "conv3d"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_outputs_have_the_mean_and_variance_that_the_weights_give_them(kind, with_bias):
    layer, dims = getattr(functional, kind), int(kind[4]) if kind != "linear" else 0
    options = {"stride": 2, "padding": 1} if dims else {}
    loc, bias_loc = torch.randn(3, 2, *[3] * dims), torch.randn(3)
    scale, bias_scale = torch.rand_like(loc), torch.rand(3)
    x = torch.randn(4, 2, *[5] * dims)

    def draws(local):
        for _ in range(1000):
            weight = loc + scale * torch.randn_like(loc)
            bias = bias_loc + bias_scale * torch.randn(3) if with_bias else None
            if not local:
                yield layer(x, weight, bias, **options)
                continue
            with LocalLayers() as layers:
                layers.add(weight, loc, scale)
                if bias is not None:
                    layers.add(bias, bias_loc, bias_scale)
                yield layer(x, weight, bias=bias, **options)

    mine, theirs = (torch.stack([*draws(local)]) for local in (True, False))
    error = (mine.var(0) / 1000 + theirs.var(0) / 1000).sqrt()
    assert ((mine.mean(0) - theirs.mean(0)) / error).abs().max() < 5
    assert ((mine.var(0) / theirs.var(0)) - 1).abs().max() < 0.35


class Linear(PyroModule):
    """A Bayesian linear regression, whose expected log-likelihood is known."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 1)
        self.layer.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(torch.zeros(1), 1.0).to_event(1))

    def forward(self, x, y=None):
        f = self.layer(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def started(model, args, symmetrize=False, **kwargs):
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.3)
    guide = pp.AutoSymmetrized(base, **kwargs) if symmetrize else base
    guide(*args)
    return guide


def draws_of(elbo, model, guide, args, num):
    """Losses, and gradients of the locs, of several draws."""
    losses, grads = [], []
    for _ in range(num):
        for parameter in guide.parameters():
            parameter.grad = None
        losses.append(elbo.loss_and_grads(model, guide, *args))
        of = [p.grad.flatten() for name, p in guide.named_parameters() if "locs" in name]
        grads.append(torch.cat(of))
    return torch.tensor(losses), torch.stack(grads)


DRAWS = 250


@pytest.mark.parametrize("kind", [*slow(Trace_ELBO), pp.FunctionalMeanField_ELBO])
def test_the_expected_loss_is_the_elbo_with_less_noise(kind):
    x, y = one_hidden_layer().args
    model = Linear()
    guide = started(model, (x, y))
    elbo = pp.LocalReparametrization(kind())
    losses, grads = draws_of(elbo, model, guide, (x, y), DRAWS)
    (w, s), (b, r) = (guide._get_loc_and_scale(f"layer.{n}") for n in ("weight", "bias"))
    mean, variance = x @ w.mT + b, x.square() @ s.square().mT + r.square()
    log_likelihood = dist.Normal(mean.squeeze(-1), 0.5).log_prob(y) - variance.squeeze(-1) / 0.5
    kl = sum(
        torch.distributions.kl_divergence(dist.Normal(m, t), dist.Normal(0.0, 1.0)).sum()
        for m, t in ((w, s), (b, r))
    )
    exact = (kl - log_likelihood.sum()).item()
    assert abs(losses.mean() - exact) < 4 * losses.std() / DRAWS**0.5
    plain_losses, plain_grads = draws_of(kind(), model, guide, (x, y), DRAWS)
    assert (grads.mean(0) - plain_grads.mean(0)).abs().max() < 5 * (
        plain_grads.std(0) / DRAWS**0.5
    ).max()
    if kind is pp.FunctionalMeanField_ELBO:  # Its divergence has no noise of its own.
        assert grads.var(0).sum() < 0.5 * plain_grads.var(0).sum()
        assert losses.var() < 0.8 * plain_losses.var()


class Convolutional(PyroModule):
    """A small convolutional classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = PyroModule[nn.Conv2d](1, 3, 3), PyroModule[nn.Linear](12, 2)
        for layer in (self.conv, self.head):
            for name, value in list(layer.named_parameters()):
                prior = dist.Normal(torch.zeros(value.shape), 1.0).to_event(value.dim())
                setattr(layer, name, PyroSample(prior))

    def forward(self, x, y=None):
        logits = self.head(torch.relu(self.conv(x)).flatten(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)


IMAGES = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
SYMMETRIZED = [*slow(Trace_ELBO, pp.TraceSymmetrized_ELBO), pp.FunctionalSymmetrized_ELBO]


@pytest.mark.parametrize("kind", SYMMETRIZED)
def test_symmetrized_convolutional_nets_have_the_same_expected_loss(kind):
    model = Convolutional()
    guide = started(model, IMAGES, symmetrize=True, permute=False)
    local, plain = pp.LocalReparametrization(kind()), kind()
    mine, _ = draws_of(local, model, guide, IMAGES, 60)
    theirs, _ = draws_of(plain, model, guide, IMAGES, 60)
    error = (mine.var() / 60 + theirs.var() / 60).sqrt()
    assert abs(mine.mean() - theirs.mean()) < 4 * error
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), local)
    assert torch.tensor([svi.step(*IMAGES) for _ in range(3)]).isfinite().all()


def test_gradients_are_finite_where_all_inputs_are_zero():
    model, x = Linear(), torch.zeros(5, 2)
    model.layer.bias = torch.zeros(1)
    guide = started(model, (x, x[:, 0]))
    elbo = pp.LocalReparametrization(pp.FunctionalMeanField_ELBO())
    _, grads = draws_of(elbo, model, guide, (x, x[:, 0]), 1)
    assert grads.isfinite().all()


def test_permuted_weights_and_models_without_layers_are_refused():
    model = Convolutional()
    guide = started(model, IMAGES, symmetrize=True)
    elbo = pp.LocalReparametrization(Trace_ELBO())
    with pytest.raises(ValueError, match="permute=False"):
        elbo.loss_and_grads(model, guide, *IMAGES)
    pyro.clear_param_store()
    problem = one_hidden_layer()
    with pytest.raises(ValueError, match="no linear or convolutional layer met a weight"):
        elbo.loss_and_grads(problem.model, started(problem.model, problem.args), *problem.args)


def test_a_weight_of_two_layers_is_refused():
    class Twice(Linear):
        def forward(self, x, y=None):
            return super().forward(x + self.layer(x), y)

    model, args = Twice(), one_hidden_layer().args
    guide = started(model, args)
    with pytest.raises(ValueError, match=r"shape \(1, 2\) is used by two layers"):
        pp.LocalReparametrization(Trace_ELBO()).loss_and_grads(model, guide, *args)


def test_vectorized_particles_are_refused():
    model, args = Linear(), one_hidden_layer().args
    guide = started(model, args)
    fast = pp.FunctionalMeanField_ELBO(num_particles=2, vectorize_particles=True)
    with pytest.raises(ValueError, match="one particle at a time"):
        pp.LocalReparametrization(fast).loss_and_grads(model, guide, *args)


def test_recipes_go_inside_of_each_other():
    model, args = Linear(), one_hidden_layer().args
    guide = started(model, args)
    local = pp.LocalReparametrization(pp.FunctionalMeanField_ELBO())
    elbo = pp.AnnealedKL(local, pp.linear_warm_up(10))
    history = pp.fit(model, guide, args, steps=5, elbo=elbo, progress=False)
    assert history.step == elbo.step == 5
