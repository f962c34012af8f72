"""Readers of other libraries' posteriors, against the libraries.

Each Gaussian that is read has the density, or the draws, that its library gives it. Tested on
recorded attributes: SWAG (its authors' repository is no package), torch-uncertainty (it wants a
compiled torchvision), and the low-rank Laplace of laplace-torch (its backend is no package).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import slow
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

import pyro_perm as pp

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0)).double()
CLASSES = (X.sum(1) > 0).long()
REALS = X.sum(1, keepdim=True).tanh()


def imported(name: str) -> Any:
    """A library, or the test is skipped; what it warns of while it loads is its own business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0]:
                raise  # It is installed, but not what it imports.
            pytest.skip(f"{name} is not installed")


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def flat(values: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([values[name].flatten() for name in names])


def moments(network: nn.Module, gaussian: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the guide of a Gaussian, in the order of the network's parameters."""
    likelihood = pp.likelihoods.categorical
    _, guide = pp.gaussian_posterior(network, gaussian, likelihood=likelihood)
    guide(x, y)
    if isinstance(gaussian, dict):
        names = [name for name, _ in network.named_parameters() if name in gaussian]
        scales = {name: scale for name, (_, scale) in gaussian.items()}
        mean = flat(guide.median(x, y), names)
        return mean, flat(scales, names).square().diag()
    posterior = guide.get_posterior()
    return posterior.mean.detach(), posterior.covariance_matrix.detach()


def require_the_certificate_of_an_auto_normal(
    network: nn.Module, found: Any, x: Tensor = X, y: Tensor = CLASSES
) -> None:
    """The certified I is that of an AutoNormal with the same means and deviations."""
    model, guide = pp.gaussian_posterior(network, found, likelihood=pp.likelihoods.categorical)
    other = AutoNormal(model)
    for each in (guide, other):
        each(x, y)
    for name, (mean, scale) in found.items():
        with torch.no_grad():
            attrgetter(f"{name}_unconstrained")(other.locs).copy_(mean)
            attrgetter(f"{name}_unconstrained")(other.scales).copy_(scale.expm1().log())
    bounds = []
    for each in (guide, other):
        pyro.set_rng_seed(1)
        bounds.append(pp.mutual_information(each, x, y, num_samples=8, progress=False))
    assert bounds[0].lower == pytest.approx(bounds[1].lower, abs=1e-10)
    assert bounds[0].upper == pytest.approx(bounds[1].upper, abs=1e-10)
    assert 0 < bounds[0].upper <= bounds[0].log_order + 1e-9


def fitted(network: nn.Module, structure: str, **kwargs: Any) -> Any:
    laplace = imported("laplace")
    found = laplace.Laplace(
        network,
        "classification",
        hessian_structure=structure,
        prior_precision=kwargs.pop("prior_precision", 2.0),
        **{"subset_of_weights": "all", **kwargs},
    )
    found.fit(DataLoader(TensorDataset(X, CLASSES), batch_size=24))
    return found


@pytest.mark.parametrize("structure", ["diag", "kron", *slow("full")])
def test_laplace_has_the_density_that_it_has(network: nn.Module, structure: str) -> None:
    laplace = fitted(network, structure)
    mean, covariance = moments(network, pp.readers.from_laplace(laplace), X, CLASSES)
    torch.testing.assert_close(mean, nn.utils.parameters_to_vector(network.parameters()).detach())
    offset = torch.randn_like(mean)
    mahalanobis = offset @ torch.linalg.solve(covariance, offset)
    expected = laplace.square_norm(laplace.mean + offset)
    torch.testing.assert_close(mahalanobis, expected.detach().squeeze())
    torch.testing.assert_close(-covariance.logdet(), laplace.log_det_posterior_precision.detach())
    if structure == "diag":
        found = pp.readers.from_laplace(laplace)
        require_the_certificate_of_an_auto_normal(network, found)


def test_recorded_low_rank_laplace(network: nn.Module) -> None:
    parameters = list(network.parameters())
    mean = nn.utils.parameters_to_vector(parameters).detach()
    vectors, values = torch.linalg.qr(torch.randn(len(mean), 3))[0], torch.rand(3)
    diagonal = 1 + torch.rand(len(mean))
    laplace = SimpleNamespace(
        model=network,
        params=parameters,
        mean=mean,
        posterior_precision=((vectors, values), diagonal),
    )
    got, covariance = moments(network, pp.readers.from_laplace(laplace), X, CLASSES)
    torch.testing.assert_close(got, mean)
    precision = vectors @ values.diag() @ vectors.mT + diagonal.diag()
    torch.testing.assert_close(covariance, precision.inverse())


def test_laplace_of_the_last_layer_is_over_its_names(network: nn.Module) -> None:
    laplace = fitted(network, "diag", subset_of_weights="last_layer")
    found = pp.readers.from_laplace(laplace)
    assert isinstance(found, dict) and list(found) == ["2.weight", "2.bias"]
    torch.testing.assert_close(found["2.weight"][0], network[2].weight.detach())
    scales = torch.cat([scale.flatten() for _, scale in found.values()])
    torch.testing.assert_close(scales, laplace.posterior_scale)


@pytest.mark.parametrize("precision", [2.0, torch.tensor([1.0, 2.0, 3.0, 4.0])])
def test_the_prior_is_that_of_laplace(network: nn.Module, precision: Any) -> None:
    precision = precision.double() if isinstance(precision, Tensor) else precision
    laplace = fitted(network, "diag", prior_precision=precision)
    model = pp.bayesian(
        network, prior=pp.readers.prior_of_laplace(laplace), likelihood=pp.likelihoods.categorical
    )
    each = torch.as_tensor(precision).expand(4)
    for (name, parameter), one in zip(network.named_parameters(), each, strict=True):
        prior = pp.readers.prior_of_laplace(laplace)(name, parameter)
        expected = dist.Normal(0.0, float(one) ** -0.5).log_prob(parameter)
        torch.testing.assert_close(prior.log_prob(parameter), expected)
    assert pp.find_symmetry(model, X, CLASSES).groups == {"P0": 4}


def test_laplace_needs_a_fit_and_whole_tensors(network: nn.Module) -> None:
    laplace = imported("laplace")
    with pytest.raises(TypeError, match="call fit"):
        pp.readers.from_laplace(laplace.DiagLaplace(network, "classification"))


def test_ivon_draws_what_is_read(network: nn.Module) -> None:
    ivon = imported("ivon")
    optimizer = ivon.IVON(network.parameters(), lr=0.1, ess=24, hess_init=0.5)
    for _ in range(5):
        with optimizer.sampled_params(train=True):
            nn.functional.cross_entropy(network(X), CLASSES).backward()
        optimizer.step()
    found = pp.readers.from_ivon(optimizer, network)
    assert list(found) == [name for name, _ in network.named_parameters()]
    require_the_certificate_of_an_auto_normal(network, found)
    draws = []
    for _ in range(1000):
        with optimizer.sampled_params():
            draws.append(nn.utils.parameters_to_vector(network.parameters()).detach())
    drawn = torch.stack(draws)
    scales = torch.cat([scale.flatten() for _, scale in found.values()])
    means = torch.cat([mean.flatten() for mean, _ in found.values()])
    assert ((drawn.mean(0) - means).abs() < 5 * scales / 1000**0.5).all()
    assert ((drawn.std(0) / scales - 1).abs() < 5 / 2000**0.5).all()
    with pytest.raises(ValueError, match="none of the network's"):
        pp.readers.from_ivon(optimizer, nn.Linear(2, 2))


def log_posterior(network: nn.Module) -> Any:
    def function(params: Any, batch: Any) -> Any:
        logits = torch.func.functional_call(network, params, batch[0])
        return -nn.functional.cross_entropy(logits, batch[1]), torch.tensor([])

    return function


def test_diagonal_states_of_posteriors(network: nn.Module) -> None:
    posteriors, torchopt = imported("posteriors"), imported("torchopt")
    params = {name: p.detach().clone() for name, p in network.named_parameters()}
    init = {name: torch.randn_like(p) for name, p in params.items()}
    state = posteriors.vi.diag.init(params, torchopt.adam(lr=0.1), init_log_sds=init)
    found = pp.readers.from_posteriors(state)
    require_the_certificate_of_an_auto_normal(network, found)
    precisions = {name: value.exp() for name, value in init.items()}
    other = posteriors.laplace.diag_fisher.init(params, init_prec_diag=precisions)
    ekf = posteriors.ekf.diag_fisher.init(params, init_sds=precisions)
    for name, mean in params.items():
        for gaussian, scale in (
            (found, init[name].exp()),
            (pp.readers.from_posteriors(other), precisions[name].rsqrt()),
            (pp.readers.from_posteriors(ekf), precisions[name]),
        ):
            torch.testing.assert_close(gaussian[name][0], mean)
            torch.testing.assert_close(gaussian[name][1], scale)


def test_dense_states_of_posteriors(network: nn.Module) -> None:
    posteriors, torchopt = imported("posteriors"), imported("torchopt")
    ravel = imported("optree.integrations.torch").tree_ravel
    params = {name: p.detach().clone() for name, p in network.named_parameters()}
    size = sum(p.numel() for p in params.values())
    factor = torch.randn(size, size).tril() / 4 + 0.5 * torch.eye(size)
    covariance = factor @ factor.mT
    vi = posteriors.vi.dense.init(params, torchopt.adam(lr=0.1), init_L=factor)
    laplace = posteriors.laplace.dense_fisher.init(params, init_prec=covariance.inverse())
    ekf = posteriors.ekf.dense_fisher.init(params, init_cov=covariance)
    mean, unravel = ravel(params)
    numbers = unravel(torch.arange(size).double())
    order = torch.cat([numbers[name].flatten() for name in params]).long()
    for state in (vi, laplace, ekf):
        got, spread = moments(network, pp.readers.from_posteriors(state), X, CLASSES)
        torch.testing.assert_close(got, mean[order])
        torch.testing.assert_close(spread, covariance[order][:, order], rtol=1e-4, atol=1e-5)


def test_states_that_are_no_gaussian_are_refused() -> None:
    with pytest.raises(TypeError, match="SimpleNamespace is no Gaussian"):
        pp.readers.from_posteriors(SimpleNamespace(params={"w": torch.zeros(2)}))
    with pytest.raises(TypeError, match="have no names"):
        pp.readers.from_posteriors(SimpleNamespace(params=torch.zeros(2)))


def test_layers_of_bayesian_torch() -> None:
    layers = imported("bayesian_torch.layers")
    net = nn.Sequential(
        layers.Conv2dReparameterization(1, 3, 2), nn.Flatten(), layers.LinearFlipout(12, 2)
    ).double()
    found = pp.readers.from_bayesian_torch(net)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    conv, linear = net[0], net[2]
    expected = {
        "0.weight": (conv.mu_kernel, conv.rho_kernel),
        "0.bias": (conv.mu_bias, conv.rho_bias),
        "2.weight": (linear.mu_weight, linear.rho_weight),
    }
    for name, (mu, rho) in expected.items():
        torch.testing.assert_close(found[name][0], mu.detach())
        torch.testing.assert_close(found[name][1], torch.log1p(rho.detach().exp()))
    # Its own KL, a mean over entries, knows the standard deviations too.
    normals = (dist.Normal(*found["0.weight"]), dist.Normal(*found["0.bias"]))
    prior = dist.Normal(0.0, 1.0)
    kl = sum(torch.distributions.kl_divergence(normal, prior).mean() for normal in normals)
    torch.testing.assert_close(conv.kl_loss().detach(), kl)
    deterministic = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(6, 1, 3, 3).double()
    require_the_certificate_of_an_auto_normal(deterministic, found, x, torch.zeros(6).long())
    with pytest.raises(ValueError, match="no layer"):
        pp.readers.from_bayesian_torch(deterministic)


class RecordedBayesLinear(nn.Module):
    """The parameters of torch-uncertainty 0.13's ``BayesLinear``, and how it draws."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_mu = nn.Parameter(torch.randn(outputs, inputs))
        self.weight_sigma = nn.Parameter(torch.randn(outputs, inputs))
        self.bias_mu = nn.Parameter(torch.randn(outputs))
        self.bias_sigma = nn.Parameter(torch.randn(outputs))
        self.weight_sampler = nn.Module()
        self.weight_sampler.mu, self.weight_sampler.rho = self.weight_mu, self.weight_sigma


def test_recorded_layers_of_torch_uncertainty() -> None:
    net = nn.Sequential(RecordedBayesLinear(2, 3), nn.ReLU(), RecordedBayesLinear(3, 1))
    found = pp.readers.from_torch_uncertainty(net)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    mean, scale = found["0.weight"]
    torch.testing.assert_close(mean, net[0].weight_mu.detach())
    torch.testing.assert_close(scale, softplus(net[0].weight_sigma.detach()))
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    require_the_certificate_of_an_auto_normal(plain, found, X, torch.zeros(len(X)).long())
    with pytest.raises(ValueError, match="no layer"):
        pp.readers.from_torch_uncertainty(nn.Linear(2, 1))


def recorded_swag(trajectory: list[nn.Module], rank: int) -> Any:
    """Attributes of the authors' ``SWAG`` after ``collect_model`` of each network."""
    base = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    params, num = [], len(trajectory)
    for layer, part in ((base[0], 0), (base[2], 2)):
        for name in ("weight", "bias"):
            each = torch.stack([getattr(net[part], name).detach() for net in trajectory])
            running = [each[: i + 1].mean(0) for i in range(num)]
            deviations = (each - torch.stack(running))[-rank:].flatten(1)
            delattr(layer, name)
            layer.register_buffer(f"{name}_mean", each.mean(0))
            layer.register_buffer(f"{name}_sq_mean", each.square().mean(0))
            layer.register_buffer(f"{name}_cov_mat_sqrt", deviations)
            params.append((layer, name))
    return SimpleNamespace(
        n_models=torch.tensor([num]),
        params=params,
        base=base,
        var_clamp=1e-30,
        no_cov_mat=False,
        max_num_models=rank,
    )


def test_recorded_statistics_of_swag(network: nn.Module) -> None:
    trajectory = [
        nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in range(6)
    ]
    swag = recorded_swag(trajectory, rank=3)
    vectors = torch.stack(
        [nn.utils.parameters_to_vector(t.parameters()).detach() for t in trajectory]
    )
    mean, covariance = moments(network, pp.readers.from_swag(swag, scale=0.5), X, CLASSES)
    torch.testing.assert_close(mean, vectors.mean(0))
    running = torch.stack([vectors[: i + 1].mean(0) for i in range(6)])
    deviations = (vectors - running)[-3:]
    expected = vectors.var(0, unbiased=False).diag() + deviations.mT @ deviations / 2
    torch.testing.assert_close(covariance, 0.5 * expected)
    found = pp.readers.from_swag(swag, low_rank=False)
    assert isinstance(found, dict)
    variances = torch.cat([scale.square().flatten() for _, scale in found.values()])
    torch.testing.assert_close(variances, vectors.var(0, unbiased=False))
    require_the_certificate_of_an_auto_normal(network, found)
    swag.n_models = torch.tensor([1])
    with pytest.raises(ValueError, match="fewer than two"):
        pp.readers.from_swag(swag)


def test_guides_of_tyxe(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    tyxe = imported("tyxe")
    # Pyro 1.9 has dropped the function with which TyXe's guide finds its parameters.
    by_name = lambda module, name: attrgetter(name)(module)  # noqa: E731
    monkeypatch.setattr(pyro.util, "deep_getattr", by_name, raising=False)
    bnn = tyxe.VariationalBNN(
        network,
        tyxe.priors.IIDPrior(dist.Normal(0.0, 1.0)),
        tyxe.likelihoods.Categorical(dataset_size=24),
        tyxe.guides.AutoNormal,
    )
    with pytest.raises(ValueError, match="call it, or fit"):
        pp.readers.from_tyxe(bnn.net_guide)
    bnn.guide(X, CLASSES)
    found = pp.readers.from_tyxe(bnn.net_guide)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    plain = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    mean, covariance = moments(plain, found, X, CLASSES)
    torch.testing.assert_close(mean, torch.cat([loc.flatten() for loc, _ in found.values()]))
    require_the_certificate_of_an_auto_normal(plain, found)
    torch.testing.assert_close(covariance.diag().sqrt(), torch.full_like(mean, 0.1))
