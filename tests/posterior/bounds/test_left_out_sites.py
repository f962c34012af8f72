"""Latent sites that a guide leaves out are summed out, or refused by name; never drawn."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import slow
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_value

import pyro_perm as pp

K = 3
X = torch.cat([torch.linspace(-0.5, 0.5, 4) + m for m in (-3.0, 0.0, 3.0)]).double()


def locations():
    return pyro.sample("mu", dist.Normal(0.0, 4.0).expand([K]).to_event(1))


@config_enumerate
def mixture(x):
    mu = locations()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(K)))
        pyro.sample("x", dist.Normal(mu[z], 0.5), obs=x)


def by_hand(x):
    """The same, the components summed out."""
    mu = locations()
    with pyro.plate("data", len(x)):
        components = dist.Normal(mu, 0.5)
        weights = dist.Categorical(torch.ones(K))
        pyro.sample("x", dist.MixtureSameFamily(weights, components), obs=x)


def base(kind=AutoNormal, model=mixture, **values):
    start = {"mu": torch.tensor([-3.0, 0.0, 3.0]), **values}
    hidden = poutine.block(model, hide=["z", "s"])
    return kind(hidden, init_loc_fn=init_to_value(values=start), init_scale=0.05)


def elbo(model, guide, *args, **options):
    pyro.set_rng_seed(1)
    return pp.symmetrized_elbo(model, guide, *args, progress=False, **options)


@pytest.mark.parametrize("permute", [*slow(True), False])
@pytest.mark.parametrize("kind", [AutoNormal, *slow(AutoDiagonalNormal, AutoMultivariateNormal)])
def test_components_are_summed_out(kind, permute):
    symmetry = pp.find_symmetry(mixture, X)
    guide = pp.AutoSymmetrized(base(kind), symmetry, estimator=pp.Exact(), permute=permute)
    guide(X)
    found, expected = (elbo(model, guide, X, num_samples=20) for model in (mixture, by_hand))
    assert found.lower == pytest.approx(expected.lower)
    assert found.base == pytest.approx(expected.base)
    assert found.lower_standard_error == pytest.approx(expected.lower_standard_error)


def test_it_is_what_enumeration_in_training_gives():
    guide = base()
    guide(X)
    found = elbo(mixture, guide, X, symmetry=pp.find_symmetry(mixture, X), num_samples=60)
    loss = TraceEnum_ELBO(max_plate_nesting=1, num_particles=60, vectorize_particles=False)
    with torch.no_grad():
        expected = -loss.loss(mixture, guide, X)
    assert abs(found.base - expected) < 5 * found.base_standard_error + 0.5


def test_the_prior_of_a_latent_site_may_depend_on_what_is_summed_out():
    """Its closed-form KL would be that of the sum's terms, not of the sum."""

    @config_enumerate
    def spike_and_slab():
        s = pyro.sample("s", dist.Bernoulli(0.4))
        scale = 0.5 + 3.0 * s
        mu = pyro.sample(
            "mu", dist.Normal(0.0, scale.unsqueeze(-1)).expand([*s.shape, K]).to_event(1)
        )
        pyro.sample("x", dist.Normal(mu.sum(-1), 0.5), obs=torch.tensor(0.3))

    def summed():
        weights = dist.Categorical(torch.tensor([0.6, 0.4]))
        scales = torch.tensor([0.5, 3.5]).unsqueeze(-1)
        prior = dist.Normal(torch.zeros(2, K), scales).to_event(1)
        mu = pyro.sample("mu", dist.MixtureSameFamily(weights, prior))
        pyro.sample("x", dist.Normal(mu.sum(-1), 0.5), obs=torch.tensor(0.3))

    symmetry = pp.PermutationSymmetry({"units": {"mu": -1}})
    guide = pp.AutoSymmetrized(base(model=spike_and_slab), symmetry)
    guide()
    found, expected = (elbo(model, guide, num_samples=16) for model in (spike_and_slab, summed))
    assert found.base == pytest.approx(expected.base)
    assert found.base_standard_error == pytest.approx(expected.base_standard_error)


@pytest.mark.slow
def test_subsamples_are_summed_out_over_all_data():
    @config_enumerate
    def model(x):
        mu = locations()
        with pyro.plate("data", len(x), subsample_size=4) as i:
            z = pyro.sample("z", dist.Categorical(torch.ones(K)))
            pyro.sample("x", dist.Normal(mu[z], 0.5), obs=x[i])

    guide = pp.AutoSymmetrized(base(), pp.find_symmetry(mixture, X))
    guide(X)
    found, expected = elbo(model, guide, X), elbo(by_hand, guide, X)  # on the same draws
    assert found.lower == pytest.approx(expected.lower)
    assert found.lower_standard_error == pytest.approx(expected.lower_standard_error)


def test_a_guide_may_draw_what_is_marked():
    """Then nothing is summed out: the guide's own choice of components counts."""
    locations_only = base()
    where = torch.arange(K).repeat_interleave(4)

    def guide(x):
        locations_only(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=3.0 * torch.eye(K)[where]))

    symmetry = pp.find_symmetry(mixture, X)
    found = elbo(mixture, guide, X, symmetry=symmetry, num_samples=40)
    with torch.no_grad():
        losses = torch.tensor([Trace_ELBO().loss(mixture, guide, X) for _ in range(100)])
    assert abs(found.base + losses.mean()) < 5 * losses.std() / 40**0.5
    assert found.base < elbo(mixture, locations_only, X, symmetry=symmetry).base


def hidden_weight():
    normal = dist.Normal(0.0, 1.0)
    w = pyro.sample("w", normal.expand([K]).to_event(1))
    v = pyro.sample("v", normal)
    pyro.sample("y", dist.Normal(w.sum() + v, 1.0), obs=torch.tensor(0.5))


def hidden_count():
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([K]).to_event(1))
    v = pyro.sample("v", dist.Bernoulli(0.5))  # Not marked.
    pyro.sample("y", dist.Normal(w.sum() + v, 1.0), obs=torch.tensor(0.5))


def hidden_sample_of_values():
    """Marked, but for a few values drawn at random: that is no sum."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([K]).to_event(1))
    infer = {"enumerate": "parallel", "num_samples": 5}
    v = pyro.sample("v", dist.Normal(0.0, 1.0), infer=infer)
    pyro.sample("y", dist.Normal(w.sum() + v, 1.0), obs=torch.tensor(0.5))


@pytest.mark.parametrize(
    "model", [hidden_weight, hidden_count, hidden_sample_of_values], ids=lambda m: m.__name__
)
def test_what_cannot_be_summed_out_is_refused_by_name(model):
    guide = AutoNormal(poutine.block(model, hide=["v"]))
    symmetry = pp.PermutationSymmetry({"units": {"w": -1}})
    guide()
    evaluations = [
        lambda: elbo(model, guide, symmetry=symmetry),
        lambda: pp.to_arviz(model, guide, num_samples=2, progress=False),
    ]
    for evaluate in evaluations:
        with pytest.raises(ValueError, match=r"the guide draws no 'v'.*infer=\{'enumerate'"):
            evaluate()
    loss = pp.negative_log_joint(model)
    with pytest.raises(ValueError, match="the solution has no 'v'"):
        loss(guide())


def test_conditioned_models_want_a_guide_of_their_own():
    guide = AutoNormal(hidden_weight)
    symmetry = pp.PermutationSymmetry({"units": {"w": -1}})
    conditioned = poutine.condition(hidden_weight, {"v": torch.tensor(0.3)})
    for evaluate in (
        lambda: elbo(conditioned, guide, symmetry=symmetry),
        lambda: pp.to_arviz(conditioned, guide, num_samples=2, progress=False),
    ):
        with pytest.raises(
            ValueError, match="the guide draws site 'v', which in the model is data"
        ):
            evaluate()
    own = AutoNormal(conditioned)
    with pytest.raises(ValueError, match="the guide draws no 'v'"):
        elbo(hidden_weight, own, symmetry=symmetry)
    assert elbo(conditioned, own, symmetry=symmetry).lower < 0


def test_barriers_sum_out_too():
    values = {"mu": torch.tensor([-2.9, 0.1, 3.2])}
    for loss in (pp.negative_log_joint, pp.negative_log_likelihood):
        torch.testing.assert_close(loss(mixture, X)(values), loss(by_hand, X)(values))


def log_likelihood(mu):
    """Of every observation, for draws of the locations."""
    components = dist.Normal(mu.unsqueeze(-2), 0.5)
    weights = dist.Categorical(torch.ones(K))
    return dist.MixtureSameFamily(weights, components).log_prob(X)


def test_exported_log_likelihood_is_that_of_the_mixture():
    guide = base()
    guide(X)
    data = pp.to_arviz(mixture, guide, X, num_samples=6, num_prior_samples=3, progress=False)
    mu = torch.as_tensor(data["posterior"]["mu"].values[0])
    found = torch.as_tensor(data["log_likelihood"]["x"].values[0])
    torch.testing.assert_close(found, log_likelihood(mu))
    lp = found.sum(-1) + dist.Normal(0.0, 4.0).log_prob(mu).sum(-1)
    torch.testing.assert_close(torch.as_tensor(data["sample_stats"]["lp"].values[0]), lp)
    assert set(data["posterior"]) == set(data["prior"]) == {"mu"}
    assert data["posterior_predictive"]["x"].shape == (1, 6, 12)


def test_predictions_draw_components_and_sum_them_out_of_the_likelihood():
    mu = torch.tensor([-3.0, 0.0, 3.0]) + 0.05 * torch.randn(100, K)
    found = pp.predict(mixture, {"mu": mu}, X, progress=False)
    torch.testing.assert_close(found.log_likelihood, log_likelihood(mu))
    # A third of the new observations lies about each location.
    assert (found.draws > 1.5).double().mean() == pytest.approx(1 / 3, abs=0.06)
    assert found.draws.std() == pytest.approx((6.0 + 0.25) ** 0.5, abs=0.2)


def exported(model, *args):
    guide = AutoNormal(poutine.block(model, expose=["mu"]), init_scale=0.1)
    return pp.to_arviz(model, guide, *args, num_samples=4, num_prior_samples=2, progress=False)


def test_chains_have_a_joint_but_no_pointwise_likelihood():
    @config_enumerate
    def model(x):
        mu = locations()
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Categorical((torch.eye(K) + 0.1)[z]))
            pyro.sample(f"x{t}", dist.Normal(mu[z], 0.5), obs=x[t])

    data = exported(model, X[:3])
    assert set(data["log_likelihood"]) == {"x0_x1_x2"}  # One sequence is one observation.
    mu = torch.as_tensor(data["posterior"]["mu"].values[0])
    transition = (torch.eye(K) + 0.1) / (torch.eye(K) + 0.1).sum(-1, keepdim=True)
    forward = transition[0].log().expand(4, K)
    for t in range(3):
        forward = forward + dist.Normal(mu, 0.5).log_prob(X[t])
        ended, forward = forward.logsumexp(-1), (forward[..., None] + transition.log()).logsumexp(1)
    found = torch.as_tensor(data["log_likelihood"]["x0_x1_x2"].values[0])
    torch.testing.assert_close(found, ended)


def test_items_are_the_observations_where_annotators_share_a_class():
    x = torch.stack([X, X + 0.1])

    @config_enumerate
    def model(x):
        mu = locations()
        items, raters = pyro.plate("items", 12, dim=-1), pyro.plate("raters", 2, dim=-2)
        with items:
            z = pyro.sample("z", dist.Categorical(torch.ones(K)))
        with raters, items:
            pyro.sample("x", dist.Normal(mu[z], 0.5), obs=x)

    data = exported(model, x)
    found = data["log_likelihood"]["x"]
    assert found.dims == ("chain", "draw", "items")
    mu = torch.as_tensor(data["posterior"]["mu"].values[0])
    each = dist.Normal(mu[:, None, None], 0.5).log_prob(x[..., None]).sum(1)
    expected = each.logsumexp(-1) - torch.tensor(3.0).log()
    torch.testing.assert_close(torch.as_tensor(found.values[0]), expected)


def test_what_one_component_ties_together_is_named():
    @config_enumerate
    def model(x):
        mu = locations()
        z = pyro.sample("z", dist.Categorical(torch.ones(K)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu[z], 0.5), obs=x)

    with pytest.warns(UserWarning, match="'x' is part of lp, .* 'z', summed out, ties all entries"):
        data = exported(model, X)
    assert "log_likelihood" not in data
    guide = AutoNormal(poutine.block(model, hide=["z"]))
    guide(X)
    with pytest.warns(UserWarning, match="'x' is part of the likelihood"):
        found = pp.predict(model, guide, X, num_samples=3, progress=False)
    assert found.draws.shape == (3, 12)
    with pytest.raises(ValueError, match="predict has warned why"):
        _ = found.log_predictive_density
