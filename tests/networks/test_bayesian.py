"""Networks as Pyro models: densities, scaling, and what is left alone."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_perm as pp

X, NOISE = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double(), 0.5


def network(outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def log_joint(model: Any, values: dict[str, Tensor], *args: Any) -> Tensor:
    conditioned = poutine.condition(model, values)
    return poutine.trace(conditioned).get_trace(*args).log_prob_sum()


def drawn(net: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn_like(p) for name, p in net.named_parameters()}


def output(net: nn.Module, values: dict[str, Tensor]) -> Tensor:
    return torch.func.functional_call(net, values, X)


COUNTS, CLASSES = torch.arange(6.0).unsqueeze(-1).double(), torch.arange(6) % 3
REALS = torch.linspace(-1, 1, 6).unsqueeze(-1).double()
LIKELIHOODS: list[tuple[Any, int, Tensor, Any]] = [
    (pp.likelihoods.categorical, 3, CLASSES, lambda f: dist.Categorical(logits=f)),
    (pp.likelihoods.bernoulli, 1, COUNTS % 2, lambda f: dist.Bernoulli(logits=f)),
    (pp.likelihoods.poisson, 1, COUNTS, lambda f: dist.Poisson(f.exp())),
    (pp.likelihoods.gaussian(NOISE), 1, REALS, lambda f: dist.Normal(f, NOISE)),
    (pp.likelihoods.gaussian_of_learned_scale(NOISE), 1, REALS, lambda f: dist.Normal(f, NOISE)),
    (
        pp.likelihoods.gaussian_of_predicted_scale,
        2,
        REALS,
        lambda f: dist.Normal(f[:, :1], nn.functional.softplus(f[:, 1:])),
    ),
]


@pytest.mark.parametrize(("likelihood", "outputs", "y", "expected"), LIKELIHOODS)
@pytest.mark.parametrize("dataset_size", [None, 60])
def test_the_log_joint_is_that_of_priors_and_likelihood(
    likelihood: Any, outputs: int, y: Tensor, expected: Any, dataset_size: int | None
) -> None:
    net = network(outputs)
    model = pp.bayesian(net, likelihood=likelihood, dataset_size=dataset_size)
    values = drawn(net)
    prior = sum(dist.Normal(0.0, 1.0).log_prob(value).sum() for value in values.values())
    fit = expected(output(net, values)).log_prob(y).sum()
    scale = 1 if dataset_size is None else dataset_size / len(X)
    torch.testing.assert_close(log_joint(model, values, X, y), prior + scale * fit)


def test_predictions_are_of_any_number_of_rows() -> None:
    model = pp.bayesian(network(3), likelihood=pp.likelihoods.categorical, dataset_size=6)
    trace = poutine.trace(model).get_trace(torch.cat([X, X]))
    assert trace.nodes["y"]["value"].shape == (12,)
    prediction = pp.predict(model, AutoNormal(model), X, CLASSES, num_samples=20, progress=False)
    assert prediction.mean.shape == (6, 3) and prediction.log_likelihood.shape == (20, 6)


def scales_of(prior: Any) -> dict[str, float]:
    pyro.clear_param_store()
    model = pp.bayesian(network(), prior=prior, likelihood=pp.likelihoods.gaussian(NOISE))
    nodes = poutine.trace(model).get_trace(X, REALS).nodes
    return {
        name: float(node["fn"].base_dist.scale.flatten()[0])
        for name, node in nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and name != "data"
    }


def test_priors_by_name_pattern_or_function() -> None:
    every = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert scales_of(pp.priors.standard_normal) == dict.fromkeys(every, 1.0)
    assert scales_of(dist.Normal(0.0, 2.0)) == dict.fromkeys(every, 2.0)
    assert scales_of(pp.priors.fan_in(2.0)) == pytest.approx(
        {"0.weight": (2 / 3) ** 0.5, "0.bias": 1.0, "2.weight": 0.5**0.5, "2.bias": 1.0}
    )
    assert scales_of({"2.*": dist.Normal(0.0, 3.0)}) == {"2.weight": 3.0, "2.bias": 3.0}
    by_name = {"*.bias": None, "0.*": pp.priors.fan_in(), "*": pp.priors.standard_normal}
    assert scales_of(by_name) == pytest.approx({"0.weight": 3**-0.5, "2.weight": 1.0})
    assert scales_of(pp.priors.weights_only(dist.Normal(0.0, 2.0))) == {
        "0.weight": 2.0,
        "2.weight": 2.0,
    }


LEARNED = {"0.prior_scale", "2.prior_scale", "noise_scale"}


def learning_model() -> pp.BayesianNetwork:
    return pp.bayesian(
        network(),
        prior=pp.priors.learned_scale(4.0),
        likelihood=pp.likelihoods.gaussian_of_learned_scale(2.0),
    )


@pytest.mark.slow
def test_learned_scales_are_those_of_layers_and_are_fitted() -> None:
    model = learning_model()
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    svi.step(X, REALS)
    store = pyro.get_param_store()
    assert set(store.keys()) >= LEARNED
    for _ in range(100):
        svi.step(X, REALS)
    assert store["0.prior_scale"].item() < 3 and store["noise_scale"].item() < 1.9
    assert pp.find_symmetry(model, X, REALS).groups == {"P0": 4}


@pytest.mark.parametrize("by_fit", [True, False])
def test_what_is_learned_is_the_modules_own_where_parameters_are_local(by_fit) -> None:
    pyro.settings.set(module_local_params=True)
    model = learning_model()
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    model(X, REALS)
    learned = dict(model.learned.items())
    assert {name.replace(":", ".") for name in learned} == LEARNED
    before = {name: value.item() for name, value in learned.items()}
    assert before["noise_scale"] == pytest.approx(math.log(2.0))
    if by_fit:
        pp.fit(model, guide, (X, REALS), steps=20, learning_rate=0.05, progress=False)
    else:
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(20):
            svi.step(X, REALS)
    assert all(value.item() != before[name] for name, value in model.learned.items())
    assert not pyro.get_param_store().keys()


def test_parameters_without_a_prior_are_trained_in_place_unless_frozen() -> None:
    net = network()
    net[0].bias.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    model = pp.bayesian(
        net, prior={"2.*": dist.Normal(0.0, 1.0)}, likelihood=pp.likelihoods.gaussian(NOISE)
    )
    guide = AutoNormal(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(X, REALS)
    moved = [name for name, p in net.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["0.weight"]
    assert {n for n in pyro.get_param_store() if "network" in n} == {"network.0.weight"}
    # What tells units apart ends the symmetry.
    with pytest.raises(ValueError, match="found no permutation symmetry"):
        pp.mutual_information(guide, X, REALS, num_samples=2, progress=False)


def test_another_networks_parameters_are_not_shared_in_silence() -> None:
    prior, likelihood = {"2.*": dist.Normal(0.0, 1.0)}, pp.likelihoods.gaussian(NOISE)
    for net in (first := network(), first):
        pp.bayesian(net, prior=prior, likelihood=likelihood)(X, REALS)
    with pytest.raises(ValueError, match=r"'network\.0\.weight' is that of another network"):
        pp.bayesian(network(), prior=prior, likelihood=likelihood)(X, REALS)
    pyro.settings.set(module_local_params=True)
    pp.bayesian(network(), prior=prior, likelihood=likelihood)(X, REALS)


def test_vectorized_particles_run_the_network_particle_by_particle() -> None:
    net = network(3)
    model = pp.bayesian(net, likelihood=pp.likelihoods.categorical, dataset_size=60)
    values = [drawn(net) for _ in range(5)]
    stacked = {name: torch.stack([v[name] for v in values]).unsqueeze(1) for name in values[0]}
    with pyro.plate("particles", 5, dim=-2):
        conditioned = poutine.condition(model, stacked)
        trace = poutine.trace(conditioned).get_trace(X, CLASSES)
    trace.compute_log_prob()
    per_particle = sum(
        node["log_prob"].reshape(5, -1).sum(-1)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and name not in ("particles", "data")
    )
    one_by_one = torch.stack([log_joint(model, each, X, CLASSES) for each in values])
    torch.testing.assert_close(per_particle, one_by_one)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    assert elbo.loss(model, AutoNormal(model), X, CLASSES) > 0


def test_networks_of_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1).double()

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.layer(x + shift)

    model = pp.bayesian(Sum(), likelihood=pp.likelihoods.gaussian(NOISE))
    values = drawn(model.network)
    shift = torch.ones(3).double()
    by_position, by_keyword = (
        log_joint(model, values, inputs, REALS) for inputs in ((X, shift), {"x": X, "shift": shift})
    )
    alone = torch.func.functional_call(model.network, values, (X, shift))
    assert by_position == by_keyword
    fit = dist.Normal(alone, NOISE).log_prob(REALS).sum()
    prior = sum(dist.Normal(0.0, 1.0).log_prob(value).sum() for value in values.values())
    torch.testing.assert_close(by_position, prior + fit)


def double(value: Tensor) -> Tensor:
    return 2 * value


WRONG_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"prior": pp.priors.fan_in}, r"'fan_in' is a function, but not of .* prior=fan_in\(\.\.\.\)"),
    ({"prior": {"0.*": pp.priors.learned_scale}}, r"call it: prior=learned_scale\(\.\.\.\)"),
    ({"prior": double}, "'double' is a function, but not of a parameter's name and value"),
    ({"likelihood": dist.Normal(0.0, 1.0)}, "function of the network's outputs .* is a Normal"),
    ({"likelihood": None}, "function of the network's outputs .* is a NoneType"),
    ({"likelihood": pp.likelihoods.gaussian}, r"call it, such as .*gaussian\(0\.1\)"),
    ({"likelihood": pp.likelihoods.gaussian_of_learned_scale}, r"gaussian_of_learned_scale\(\)"),
    ({"likelihood": double}, "returned a Tensor in place of a distribution"),
    ({"dataset_size": 40.0}, "dataset_size is a number of rows, an int, but is 40.0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_ARGUMENTS)
def test_arguments_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        pp.bayesian(network(), **{"likelihood": pp.likelihoods.gaussian(1.0), **options})(X, REALS)


def test_a_size_may_be_a_number_of_numpy() -> None:
    net, likelihood = network(), pp.likelihoods.gaussian(1.0)
    values = drawn(net)
    one, other = (
        log_joint(pp.bayesian(net, likelihood=likelihood, dataset_size=size), values, X, REALS)
        for size in (60, np.int64(60))
    )
    assert one == other


def test_priors_of_more_than_name_and_value_are_taken() -> None:
    def prior(name: str, value: Tensor, *more: Any, scale: float = 2.0) -> dist.Normal:
        return dist.Normal(0.0, scale)

    for each in (prior, print):  # None of a prior that prints.
        model = pp.bayesian(network(), prior=each, likelihood=pp.likelihoods.gaussian(1.0))
        poutine.trace(model).get_trace(X, REALS)


def test_what_does_not_fit_is_refused() -> None:
    net, likelihood = network(), pp.likelihoods.gaussian(NOISE)
    with pytest.raises(ValueError, match=r"no parameter .* matches the prior's pattern 'fc\.\*'"):
        pp.bayesian(net, prior={"fc.*": None}, likelihood=likelihood)
    with pytest.raises(TypeError, match="a prior is a distribution"):
        pp.bayesian(net, prior=1.0, likelihood=likelihood)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"observations y are of shape \(6,\), but"):
        pp.bayesian(net, likelihood=likelihood)(X, REALS.squeeze(-1))
    with pytest.raises(ValueError, match="the batch has 6 rows, more than dataset_size = 5"):
        pp.bayesian(net, likelihood=likelihood, dataset_size=5)(X, REALS)
    wide = dist.Normal(torch.zeros(7), 1.0)
    with pytest.raises(ValueError, match=r"the prior of '0\.weight' is of shape \(7,\)"):
        pp.bayesian(net, prior=wide, likelihood=likelihood)(X, REALS)
    with pytest.raises(ValueError, match="one distribution for all observations"):
        pp.bayesian(net, likelihood=lambda f: dist.Normal(f.sum(), 1.0))(X, REALS)
    with pytest.raises(ValueError, match="the last dimension must be even"):
        pp.bayesian(net, likelihood=pp.likelihoods.gaussian_of_predicted_scale)(X, REALS)


PRIORS: list[Any] = [
    pp.priors.standard_normal,
    pp.priors.fan_in(2.0),
    pp.priors.learned_scale(),
    pp.priors.weights_only(pp.priors.fan_in()),
    dist.Normal(0.0, 0.5),
    {"0.*": dist.Laplace(0.0, 1.0), "2.bias": None, "*": pp.priors.standard_normal},
]


SCALES = torch.linspace(0.5, 2.0, 12).reshape(4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "prior",
    [
        *PRIORS,
        dist.Normal(torch.tensor(0.5, dtype=torch.float64), 1.0),
        dist.StudentT(3.0).mask(True),
        dist.LogNormal(0.0, 1.0),
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(torch.tensor(1.0), 2.0)
        ),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.tensor([0.5, 2.0]))
        ),
        {"0.weight": dist.Normal(0.0, SCALES).to_event(2), "*": lambda *_: dist.Normal(0.0, 1.0)},
    ],
)
def test_a_prior_takes_the_precision_of_the_parameter(prior: Any, dtype: torch.dtype) -> None:
    net = network().to(dtype)
    model = pp.bayesian(net, prior=prior, likelihood=pp.likelihoods.gaussian(NOISE))
    trace = poutine.trace(model).get_trace(X.to(dtype), REALS.to(dtype))
    sites = [trace.nodes[name] for name in dict(net.named_parameters()) if name in trace.nodes]
    assert sites and all(site["value"].dtype == dtype for site in sites)
    trace.compute_log_prob()
    assert all(site["log_prob"].dtype == dtype for site in sites)
    if isinstance(prior, dist.TorchDistribution):
        for site in sites:
            torch.testing.assert_close(
                site["log_prob"], prior.log_prob(site["value"]).sum().to(dtype)
            )


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("likelihood", "outputs", "y"), [each[:3] for each in LIKELIHOODS])
def test_a_model_can_be_pickled(prior: Any, likelihood: Any, outputs: int, y: Tensor) -> None:
    """As other processes get it."""
    pyro.settings.set(module_local_params=True)  # Model and copy have parameters of one name.
    net = network(outputs)
    model = pp.bayesian(net, prior=prior, likelihood=likelihood)
    copy = pickle.loads(pickle.dumps(model))
    values = drawn(net)
    found, expected = (log_joint(each, values, X, y) for each in (copy, model))
    assert found.isfinite() and torch.equal(found, expected)
