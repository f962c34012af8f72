"""Gaussians over a network's parameters: the same in every form, and as an AutoNormal."""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import Any

import arviz as az
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_perm as pp

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(20, 2, generator=GENERATOR).double()
Y = torch.sin(2 * X.sum(1, keepdim=True))
LIKELIHOOD = pp.likelihoods.gaussian(0.3)
Found = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()


@pytest.fixture
def found(network: nn.Module) -> Found:
    return {
        name: (torch.randn_like(p), 0.3 + 0.4 * torch.rand_like(p))
        for name, p in network.named_parameters()
    }


def dense(found: Found) -> pp.DenseGaussian:
    scales = torch.cat([scale.flatten() for _, scale in found.values()])
    return pp.DenseGaussian({name: mean for name, (mean, _) in found.items()}, scales.diag())


def posterior(network: nn.Module, gaussian: Any, **kwargs: Any) -> pp.GaussianPosterior:
    return pp.gaussian_posterior(network, gaussian, likelihood=LIKELIHOOD, **kwargs)


def information(guide: Any) -> pp.MutualInformation:
    pyro.set_rng_seed(1)
    return pp.mutual_information(guide, X, Y, num_samples=60, progress=False)


def auto_normal(model: Any, found: Found) -> AutoNormal:
    guide = AutoNormal(model)
    guide(X, Y)
    for name, (mean, scale) in found.items():
        with torch.no_grad():
            attrgetter(f"{name}_unconstrained")(guide.locs).copy_(mean)
            attrgetter(f"{name}_unconstrained")(guide.scales).copy_(scale.expm1().log())
    return guide


@pytest.mark.slow
def test_its_certificate_is_that_of_an_auto_normal(network: nn.Module, found: Found) -> None:
    model, guide = posterior(network, found)
    guide(X, Y)
    one, other = information(guide), information(auto_normal(model, found))
    assert one.lower == pytest.approx(other.lower, abs=1e-10)
    assert one.upper == pytest.approx(other.upper, abs=1e-10)
    assert 0 < one.lower < one.log_order


def test_forms_of_one_gaussian_agree(network: nn.Module, found: Found) -> None:
    scales = torch.cat([scale.flatten() for _, scale in found.values()])
    means = {name: mean for name, (mean, _) in found.items()}
    forms = [
        dense(found),
        pp.DenseGaussian.of_covariance(means, scales.square().diag()),
        pp.DenseGaussian.of_precision(means, scales.square().reciprocal().diag()),
        pp.LowRankGaussian(means, torch.zeros(len(scales), 2), scales.square()),
    ]
    medians = posterior(network, found).guide
    medians(X, Y)
    for form in forms:
        guide = posterior(network, form).guide
        guide(X, Y)
        for name, value in guide.median(X, Y).items():
            torch.testing.assert_close(value, found[name][0])
        for name, (low, high) in guide.quantiles([0.1, 0.9], X, Y).items():
            expected = medians.quantiles([0.1, 0.9], X, Y)[name]
            torch.testing.assert_close(torch.stack([low, high]), torch.stack(list(expected)))


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_joint_gaussians_keep_their_covariance_whatever_the_order(
    network: nn.Module, found: Found, kind: str
) -> None:
    names = list(reversed(found))
    means = {name: found[name][0] for name in names}
    size = sum(mean.numel() for mean in means.values())
    factor, diagonal = torch.randn(size, 3), 0.1 + torch.rand(size)
    covariance = factor @ factor.mT + diagonal.diag()
    gaussian: Any = pp.LowRankGaussian(means, factor, diagonal)
    if kind == "dense":
        gaussian = pp.DenseGaussian.of_covariance(means, covariance)
    guide = posterior(network, gaussian).guide
    guide(X, Y)
    parts = torch.arange(size).split([mean.numel() for mean in means.values()])
    index = dict(zip(names, parts, strict=True))
    order = torch.cat([index[name] for name in found])
    got = guide.get_posterior()
    torch.testing.assert_close(got.covariance_matrix, covariance[order][:, order])
    torch.testing.assert_close(got.mean, torch.cat([m.flatten() for m, _ in found.values()]))
    bounds = information(guide)
    assert 0 <= bounds.lower <= bounds.log_order


def test_everything_that_takes_a_guide_takes_it(network: nn.Module, found: Found) -> None:
    model, guide = posterior(network, found, prior=pp.priors.fan_in())
    elbo = pp.symmetrized_elbo(model, guide, X, Y, num_samples=20, progress=False)
    assert elbo.lower > elbo.base
    assert pp.predict(model, guide, X, Y, num_samples=5, progress=False).mean.shape == (20, 1)
    exported = pp.to_arviz(model, guide, X, Y, num_samples=10, progress=False)
    assert "0.weight" in exported["posterior"] and az.__version__
    symmetrized = pp.AutoSymmetrized(guide)
    draws = symmetrized.sample_posterior(6, X, Y)
    aligned = pp.align(draws.values, symmetrized.symmetry)
    assert aligned.samples["0.weight"].shape == (6, 5, 2)
    svi = SVI(model, symmetrized, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = guide.median(X, Y)["0.weight"].clone()
    svi.step(X, Y)
    assert not torch.equal(guide.median(X, Y)["0.weight"], before)
    again = copy.deepcopy(guide)
    assert torch.equal(again.median(X, Y)["0.weight"], guide.median(X, Y)["0.weight"])


def test_parameters_without_a_gaussian_are_left_alone(network: nn.Module, found: Found) -> None:
    last = {name: value for name, value in found.items() if name.startswith("2.")}
    model, guide = posterior(network, last)
    draws = guide(X, Y)
    assert draws.keys() == last.keys()
    hidden = torch.tanh(network[0](X))
    predicted = pp.predict(model, {n: v[None] for n, v in draws.items()}, X, progress=False)
    expected = hidden @ draws["2.weight"].mT + draws["2.bias"]
    torch.testing.assert_close(predicted.means[0], expected)


def test_two_posteriors_of_one_network_do_not_share_parameters(
    network: nn.Module, found: Found
) -> None:
    shifted = {name: (mean + 1, scale) for name, (mean, scale) in found.items()}
    for gaussian, other in ((found, shifted), (dense(found), dense(shifted))):
        guides = [posterior(network, each).guide for each in (gaussian, other)]
        one, two = (guide.median(X, Y) if guide(X, Y) else {} for guide in guides)
        for name in found:
            torch.testing.assert_close(two[name], one[name] + 1)


def test_gaussians_that_do_not_fit_are_refused(network: nn.Module, found: Found) -> None:
    mean, scale = found["0.weight"]
    cases: list[tuple[Any, str]] = [
        ({}, "no parameter at all"),
        ({"fc.weight": (mean, scale)}, r"'fc\.weight', which is no parameter"),
        ({"0.weight": (mean.T, scale)}, r"mean of '0\.weight' is of shape \(2, 5\)"),
        ({"0.weight": (mean, scale.T)}, r"scale of '0\.weight' is of shape \(2, 5\)"),
        ({"0.weight": (mean, -scale)}, r"scale of '0\.weight' must be positive"),
        ({"0.weight": (mean / 0, scale)}, "not finite"),
        (pp.DenseGaussian({"0.weight": mean}, torch.eye(9)), "scale_tril is of shape"),
        (pp.LowRankGaussian({"0.weight": mean}, torch.ones(9, 2), torch.ones(10)), "cov_factor is"),
        (pp.LowRankGaussian({"0.weight": mean}, torch.ones(10, 2), torch.zeros(10)), "cov_diag"),
    ]
    for gaussian, message in cases:
        with pytest.raises(ValueError, match=message):
            posterior(network, gaussian)
    model, _ = posterior(network, found, prior={"0.*": pp.priors.standard_normal})
    with pytest.raises(ValueError, match=r"'2\.weight' has a Gaussian posterior, but no prior"):
        model(X, Y)


def test_latent_sites_without_a_gaussian_are_refused(network: nn.Module, found: Found) -> None:
    def noisy(means: Tensor) -> Any:
        scale = pyro.sample("noise", pyro.distributions.LogNormal(0.0, 1.0))
        return pyro.distributions.Normal(means, scale)

    for gaussian in (found, dense(found)):
        _, guide = pp.gaussian_posterior(network, gaussian, likelihood=noisy)
        for _ in range(2):
            with pytest.raises(ValueError, match="no entry for the model's latent site 'noise'"):
                guide(X, Y)
