"""Exports of guides that rescale: draws, densities and predictions are those of q~."""

from __future__ import annotations

import arviz as az
import arviz_checks
import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import slow
from pyro.infer.autoguide import AutoNormal
from scipy.stats import ks_2samp, kstest
from torch import Tensor

import pyro_perm as pp
from pyro_perm import Axis

pytestmark = arviz_checks.pytestmark

X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.9], [0.1, 0.2], [-1.5, -0.3]]).double()
Y = torch.tensor([0.4, -0.2, 1.1, 0.0, 0.7]).double()
# Of two units' entries: two weights and a bias come in, one weight goes out.
DEGREES = torch.tensor([1.0, 1.0, 1.0, -1.0]).double()
T = torch.linspace(-12, 12, 6_001, dtype=torch.float64)


def constant_prior(x, y=None):
    network(x, y, torch.ones(()))


def hierarchical_prior(x, y=None):
    network(x, y, pyro.sample("tau", dist.LogNormal(0.0, 0.5)))


def network(x: Tensor, y: Tensor | None, tau: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, tau).expand([2, 2]).to_event(2))
    b = pyro.sample("b", dist.Normal(0.0, 0.8).expand([2]).to_event(1))
    v = pyro.sample("v", dist.Normal(0.0, 0.7).expand([1, 2]).to_event(2))
    f = (torch.relu(x @ w.mT + b) @ v.mT).squeeze(-1)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)


models = pytest.mark.parametrize("model", [constant_prior, *slow(hierarchical_prior)])


def trained(model, **kwargs) -> pp.AutoSymmetrized:
    """A guide away from the prior, its factors not balanced."""
    incoming = Axis(0, scale=1)
    symmetry = pp.PermutationSymmetry(
        {"units": {"w": incoming, "b": incoming, "v": Axis(1, scale=-1)}}
    )
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(base, symmetry, **kwargs)
    guide(X, Y)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.startswith("locs"):
                parameter.copy_(torch.randn_like(parameter))
        base.locs.v *= 3
        base.locs.w /= 3
    return guide


def exported(model, num: int, **kwargs):
    guide = trained(model, **kwargs)
    data = pp.to_arviz(model, guide, X, Y, num_samples=num, progress=False, seed=3)
    draws = {name: torch.tensor(value.values[0]) for name, value in data["posterior"].items()}
    return guide, data, draws


def units(values: dict[str, Tensor]) -> Tensor:
    """Shape ``(..., units, entries)``."""
    return torch.cat([values["w"], values["b"].unsqueeze(-1), values["v"].mT], -1)


def log_joint(draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pointwise log-likelihood and log-prior."""
    hidden = torch.relu(X @ draws["w"].mT + draws["b"].unsqueeze(-2))
    f = (hidden @ draws["v"].mT).squeeze(-1)
    prior = prior_of_units(draws).log_prob(units(draws)).sum((-1, -2))
    if "tau" in draws:
        prior = prior + dist.LogNormal(0.0, 0.5).log_prob(draws["tau"])
    return dist.Normal(f, 0.5).log_prob(Y), prior


def prior_of_units(draws: dict[str, Tensor]) -> dist.Normal:
    num = len(draws["w"])
    tau = draws.get("tau", torch.ones(num))
    scales = torch.stack([tau, tau, torch.full((num,), 0.8), torch.full((num,), 0.7)], -1)
    return dist.Normal(0.0, scales.unsqueeze(-2))


def along_orbits(draws: dict[str, Tensor]) -> Tensor:
    """The units at all scales, shape ``(T, draws, units, entries)``."""
    return units(draws) * (DEGREES * T[:, None]).exp()[:, None, None]


def log_q_by_brute_force(guide: pp.AutoSymmetrized, draws: dict[str, Tensor]) -> Tensor:
    locs, scales = (
        {k: getattr(kind, k).detach() for k in ("w", "b", "v")}
        for kind in (guide.base.locs, guide.base.scales)
    )
    m, s = units(locs), units(scales)
    moved = along_orbits(draws)
    volume = DEGREES.sum() * T[:, None, None]

    def mass(density: dist.Normal) -> Tensor:
        return (density.log_prob(moved).sum(-1) + volume).logsumexp(0) + (T[1] - T[0]).log()

    straight, crossed = (
        mass(dist.Normal(m[order], s[order])).sum(-1) for order in ([0, 1], [1, 0])
    )
    q_orbit = torch.logaddexp(straight, crossed)
    p_orbit = mass(prior_of_units(draws)).sum(-1) + torch.tensor(2.0).log()
    log_prior = prior_of_units(draws).log_prob(units(draws)).sum((-1, -2))
    log_q = log_prior + q_orbit - p_orbit
    if "tau" in draws:
        loc, scale = guide.base.locs.tau.detach(), guide.base.scales.tau.detach()
        log_q = log_q + dist.LogNormal(loc, scale).log_prob(draws["tau"])
    return log_q


@models
def test_statistics_are_the_densities_of_the_rescaled_draws(model):
    guide, data, draws = exported(model, 30, estimator=pp.Exact())
    log_likelihood, log_prior = log_joint(draws)
    found = {name: torch.tensor(data["sample_stats"][name].values[0]) for name in ("lp", "log_q")}
    torch.testing.assert_close(found["lp"], log_likelihood.sum(-1) + log_prior)
    expected = log_q_by_brute_force(guide, draws)
    torch.testing.assert_close(found["log_q"], expected, rtol=0, atol=1e-6)
    pointwise = torch.tensor(data["log_likelihood"]["y"].values[0])
    torch.testing.assert_close(pointwise, log_likelihood)


@models
def test_draws_follow_the_prior_along_their_orbits(model):
    """The probability below its own place on the orbit is uniform; under q it is anything but."""

    def places(draws: dict[str, Tensor]) -> Tensor:
        heights = prior_of_units(draws).log_prob(along_orbits(draws)).sum(-1)
        density = (heights + DEGREES.sum() * T[:, None, None]).softmax(0)
        return density[T < 0].sum(0).flatten()

    _, _, draws = exported(model, 100)
    assert kstest(places(draws).numpy(), "uniform").pvalue > 1e-3
    guide = trained(model, permute=False)
    raw = guide.sample_posterior(50, X, Y).values
    assert kstest(places(raw).numpy(), "uniform").pvalue < 1e-6


@pytest.mark.slow
@models
def test_predictions_are_those_of_the_base_guide(model):
    guide = trained(model)
    found = pp.predict(model, guide, X, num_samples=200, progress=False).draws
    guide.permute = False
    expected = pp.predict(model, guide, X, num_samples=200, progress=False).draws
    for row in range(len(X)):
        assert ks_2samp(found[:, row].numpy(), expected[:, row].numpy()).pvalue > 1e-3


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_arviz_reads_what_is_exported():
    _, data, draws = exported(constant_prior, 200)
    assert all(value.isfinite().all() for value in draws.values())
    arviz_checks.check_summary(data, ["w", "b", "v"])
    loo = az.loo(data)
    assert torch.tensor(arviz_checks.elpd(loo)).isfinite()
