"""Densities of guides that rescale units, against integrals along orbits by brute force."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from rescaled_networks import Network, brute_force, density_of, laplace, normal, student, units

import pyro_perm as pp


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


NETWORKS = {
    "one unit": Network(1),
    "three units": Network(3),
    "three units with signs": Network(3, torch.abs),
    "Laplace priors": Network(2, prior=laplace),
    "Student's priors": Network(2, prior=student),
}
networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


@networks
@pytest.mark.parametrize(
    "estimator", [pp.Exact(), pp.Bethe(), pp.SampledChainRule(400)], ids=lambda e: type(e).__name__
)
def test_the_log_ratio_is_that_of_brute_force(network, estimator):
    guide = network.guide(estimator=estimator, permute=False)
    density = density_of(guide)
    found = estimator.log_ratio(density)
    expected = brute_force(network, density.values, density.locs, density.scales)
    tolerance = 1e-8 if not isinstance(estimator, pp.SampledChainRule) else 0.02
    if network.prior is not normal:
        tolerance = max(tolerance, 1e-6)
    assert found.item() == pytest.approx(expected.item(), abs=tolerance)


@pytest.mark.parametrize(
    "estimator", [pp.InfoNCE(3), pp.InfoNCE(1), pp.LeaveOneOut(3)], ids=lambda e: repr(e)
)
def test_uniform_permutations_of_units_that_stay_in_place(estimator):
    """There are none but the identity: what rescaling does is summed exactly."""
    incoming, outgoing = (pp.Axis(dim, scale=1 - 2 * dim, permute=False) for dim in (0, 1))
    spec = pp.PermutationSymmetry({"units": {"w": incoming, "b": incoming, "v": outgoing}})
    guide = pp.AutoSymmetrized(Network(3).base(), spec, permute=False)
    density = density_of(guide)
    found, expected = (each.log_ratio(density) for each in (estimator, pp.Exact()))
    assert found.item() == pytest.approx(expected.item(), abs=1e-8)


@networks
def test_gradients_are_those_of_finite_differences(network):
    """In the parameters, through the draw: what a step of training follows."""
    guide = network.guide(estimator=pp.Exact(), permute=False)
    guide()
    parameters = dict(guide.named_parameters())

    def value():
        pyro.set_rng_seed(3)
        return pp.Exact().log_ratio(density_of(guide))

    value().backward()
    for name, parameter in parameters.items():
        direction = torch.randn(parameter.shape)
        slope = (parameter.grad * direction).sum().item()
        step = 1e-4
        with torch.no_grad():
            parameter.add_(step * direction)
            above = value().item()
            parameter.sub_(2 * step * direction)
            below = value().item()
            parameter.add_(step * direction)
        assert slope == pytest.approx((above - below) / (2 * step), rel=2e-4, abs=1e-6), name


@networks
def test_bethe_has_the_gradient_of_the_exact_sum(network):
    guide = network.guide(permute=False)
    guide()
    grads = []
    for estimator in (pp.Exact(), pp.Bethe()):
        guide.zero_grad()
        pyro.set_rng_seed(3)
        estimator.log_ratio(density_of(guide)).backward()
        grads.append(torch.cat([p.grad.flatten() for p in guide.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-8)


def test_the_density_of_the_guide_is_normalized():
    """``q~ / p = q_Q / p_Q``, whose mean under the prior is one."""
    network = Network(1)
    guide = network.guide(estimator=pp.Exact(), permute=False)
    density = density_of(guide)
    pyro.set_rng_seed(1)
    num = 200_000
    values = {
        "w": 0.9 * torch.randn(num, 1, 2),
        "b": 1.2 * torch.randn(num, 1),
        "v": 0.7 * torch.randn(num, 1, 1),
    }
    from_prior = replace(density, values=values, batch_shape=torch.Size([num]))
    with torch.no_grad():
        log_q = dist.Normal(units(density.locs), units(density.scales)).log_prob(units(values))
        log_p = density.priors.log_prob(density.symmetry, values)
        log_weights = pp.Exact().log_ratio(from_prior) + log_q.sum((-2, -1)) - log_p
    weights = log_weights.exp()
    assert weights.mean().item() == pytest.approx(1.0, abs=5 * weights.std().item() / num**0.5)
    assert weights.std() > 0.5  # The guide is not the prior.


@pytest.mark.parametrize(
    "network", [pytest.param(n, id=name) for name, n in NETWORKS.items() if n.prior is normal]
)
def test_a_guide_that_is_the_prior_gains_nothing(network):
    guide = network.guide(estimator=pp.Exact(), permute=False)
    density = density_of(guide)
    scales = {"w": 0.9, "b": 1.2, "v": 0.7}
    prior = replace(
        density,
        locs={site: torch.zeros_like(loc) for site, loc in density.locs.items()},
        scales={site: torch.full_like(density.scales[site], s) for site, s in scales.items()},
    )
    gain = -pp.Exact().log_ratio(prior).item()
    assert gain == pytest.approx(0.0, abs=1e-8)
    assert prior.scale_gain.item() == pytest.approx(0.0, abs=1e-8)
