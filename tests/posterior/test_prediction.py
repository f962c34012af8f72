"""Predictions: one set of draws for all batches, every kind of posterior, and known moments."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import local_latents, observe, one_hidden_layer, with_scales
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule, PyroSample
from sklearn.metrics import log_loss

import pyro_perm as pp


def line(x, y=None, *, noise=0.5):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def guide_of_line(loc=2.0, scale=0.3):
    init = init_to_value(values={"slope": torch.tensor(loc)})
    guide = AutoNormal(line, init_scale=scale, init_loc_fn=init)
    guide(torch.ones(1), torch.ones(1))
    return guide


class Classifier(PyroModule):
    """A network of ordinary layers, which runs one draw at a time only."""

    def __init__(self):
        super().__init__()
        for name, shape in (("hidden", (2, 4)), ("out", (4, 3))):
            layer = PyroModule[torch.nn.Linear](*shape)
            for part in ("weight", "bias"):
                size = getattr(layer, part).shape
                setattr(
                    layer, part, PyroSample(dist.Normal(0.0, 1.0).expand(size).to_event(len(size)))
                )
            setattr(self, name, layer)

    def forward(self, x, y=None):
        logits = self.out(torch.tanh(self.hidden(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def test_moments_and_quantiles_of_a_gaussian():
    x = torch.linspace(-2, 2, 5)
    prediction = pp.predict(line, guide_of_line(), x, num_samples=4000, progress=False)
    assert prediction.draws.shape == prediction.means.shape == (4000, 5)
    with pytest.raises(ValueError, match="called without observations: pass them to predict"):
        _ = prediction.log_predictive_density
    error = 0.3 * x.abs() / 4000**0.5
    assert ((prediction.mean - 2 * x).abs() <= 4 * error + 1e-9).all()
    spread = (0.3**2 * x**2 + 0.5**2).sqrt()
    expected = 2 * x + torch.tensor([[-1.645], [0.0], [1.645]]) * spread
    found = prediction.quantiles([0.05, 0.5, 0.95])
    torch.testing.assert_close(found, expected, atol=0.08, rtol=0)


def test_every_draw_serves_all_batches():
    x, y = torch.randn(2, 10)
    results = []
    for batch_size in (None, 3, 100):
        pyro.set_rng_seed(0)
        results.append(
            pp.predict(
                line, guide_of_line(), x, y, num_samples=6, batch_size=batch_size, progress=False
            )
        )
    for prediction in results:
        slopes = prediction.means / x
        torch.testing.assert_close(slopes, slopes[:, :1].expand(6, 10))
        expected = dist.Normal(prediction.means, 0.5).log_prob(y)
        torch.testing.assert_close(prediction.log_likelihood, expected)
    assert torch.equal(results[0].draws, results[2].draws)


def test_samples_are_used_one_by_one():
    slopes, x = torch.tensor([1.0, 3.0]), torch.arange(3.0)
    prediction = pp.predict(line, {"slope": slopes}, x, noise=0.1, progress=False)
    assert prediction.means.tolist() == [[0.0, 1.0, 2.0], [0.0, 3.0, 6.0]]
    assert (prediction.draws - prediction.means).abs().max() < 0.5


def test_nuts_predicts():
    x = torch.ones(50)
    mcmc = MCMC(NUTS(line), 60, 30, disable_progbar=True)
    with pytest.raises(ValueError, match=r"no draws yet: call mcmc.run\(...\) first"):
        pp.predict(line, mcmc, x, progress=False)
    mcmc.run(x, 1.5 * x)
    prediction = pp.predict(line, mcmc, x[:2], progress=False)
    assert prediction.means.shape == (60, 2)
    assert prediction.mean[0].item() == pytest.approx(1.5, abs=0.2)
    assert torch.equal(prediction.means[:, 0], mcmc.get_samples()["slope"])


@pytest.mark.parametrize("symmetrized", [False, True])
def test_ordinary_classifiers_predict_probabilities(symmetrized):
    model, x = Classifier(), torch.randn(7, 2)
    y = torch.arange(7) % 3
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    if symmetrized:
        guide = pp.AutoSymmetrized(guide)
    guide(x, y)
    prediction = pp.predict(model, guide, x, y, num_samples=5, batch_size=4, progress=False)
    assert prediction.means.shape == (5, 7, 3)
    torch.testing.assert_close(prediction.mean.sum(-1), torch.ones(7))
    assert prediction.draws.shape == (5, 7)
    picked = prediction.means.gather(-1, y.expand(5, 7)[..., None]).squeeze(-1)
    torch.testing.assert_close(prediction.log_likelihood, picked.log())
    loss = log_loss(y, prediction.mean, labels=[0, 1, 2])
    assert -prediction.log_predictive_density.mean().item() == pytest.approx(loss)


def test_subsampled_plates_predict_all_of_their_data():
    problem = local_latents()
    guide = problem.base()
    guide(*problem.args)
    prediction = pp.predict(problem.model, guide, *problem.args, num_samples=3, progress=False)
    assert prediction.draws.shape == (3, 10)


def test_one_of_several_observed_sites_is_chosen():
    def model(x, y=None):
        line(x, y)
        with pyro.plate("again", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0), obs=y)
        pyro.deterministic("twice", 2 * x)
        pyro.factor("penalty", -x.sum())

    x = torch.ones(4)
    samples = {"slope": torch.ones(2)}
    with pytest.warns(UserWarning, match="'penalty' is part .* in no plate"):
        prediction = pp.predict(model, samples, x, x, site="z", progress=False)
    assert prediction.log_likelihood.shape == (2, 4)
    for wrong in (None, "slope", "w"):
        with pytest.raises(
            ValueError, match=r"choose the observed site: site= one of \['y', 'z'\]"
        ):
            pp.predict(model, samples, x, x, site=wrong, progress=False)


def rescaled_guide():
    problem = with_scales(one_hidden_layer(3, torch.relu))
    runs = []

    def model(x, y=None):
        runs.append(1)
        problem.model(x, y)

    guide = replace(problem, model=model).guide(init_scale=0.05)
    guide(*problem.args)
    return guide, model, problem.args, runs


def test_units_are_not_rescaled_for_predictions_which_are_the_same():
    """The scales go by the numbers, draw by draw: it took 75 times as long."""
    guide, model, args, runs = rescaled_guide()
    options = {"num_samples": 200, "progress": False}
    expected = pp.predict(model, guide.base, *args, **options)
    runs.clear()
    found = pp.predict(model, guide, *args, **options)
    assert len(runs) < 100
    for name in ("draws", "means", "log_likelihood"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
    rescaled = pp.predict(lambda x, y: model(x, y), guide, *args, **options)
    spread = (found.means.var(0) + rescaled.means.var(0)) / 200
    assert ((rescaled.mean - found.mean).abs() < 4.5 * spread.sqrt()).all()


def test_units_are_rescaled_for_models_that_might_see_it():
    guide, _, (x, _), _ = rescaled_guide()

    def first_unit(x, y=None):
        w = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w[0, 0].expand(len(x)), 1.0), obs=y)

    options = {"num_samples": 50, "progress": False}
    of_base, of_guide = (
        pp.predict(first_unit, each, x, **options).means[:, 0].std() for each in (guide.base, guide)
    )
    assert of_base < 0.1 < of_guide


def test_what_cannot_be_predicted_is_refused():
    problem = one_hidden_layer()
    x, y = problem.args
    guide = problem.base()
    guide(x, y)
    samples = {name: value.detach()[None] for name, value in guide.median().items()}
    short = {name: value for name, value in samples.items() if name != "b2"}
    cases = [
        (guide, {"num_samples": 0}, "num_samples must be at least 1"),
        (samples, {"num_samples": 1}, "samples are all used: leave out num_samples="),
        (guide, {"batch_size": 0}, "must be at least 1"),
        (short, {}, r"no draws of \['b2'\]: add them"),
        ({n: v[None] for n, v in samples.items()}, {}, r"has shape .* in the model, but a draw"),
    ]
    for posterior, options, message in cases:
        with pytest.raises(ValueError, match=message):
            pp.predict(problem.model, posterior, x, y, progress=False, **options)
    with pytest.raises(ValueError, match=r"no draws of \['b2', 'y'\]: say by site= which"):
        pp.predict(problem.model, short, x, None, progress=False)
    with pytest.raises(ValueError, match=r"the lengths are \[12, 2\]|the lengths are \[2, 12\]"):
        pp.predict(problem.model, guide, x, y[:2], batch_size=3, progress=False)


def test_batches_need_rows_along_the_first_dimension():
    def model(x, y=None):
        with pyro.plate("outputs", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    x = torch.zeros(5)
    assert pp.predict(model, {"w": torch.zeros(1)}, x, progress=False).draws.shape == (1, 2, 5)
    with pytest.raises(ValueError, match="leave out batch_size="):
        pp.predict(model, {"w": torch.zeros(1)}, x, batch_size=3, progress=False)


def test_observations_through_a_particle_dimension():
    """``observe`` of the shared problems is a plate of all rows."""
    x, y = torch.randn(3, 1), torch.zeros(3)

    def model(x, y):
        observe(x * pyro.sample("w", dist.Normal(0.0, 1.0)), y)

    prediction = pp.predict(model, {"w": torch.ones(2)}, x, y, progress=False)
    torch.testing.assert_close(prediction.mean, x[:, 0])


@pytest.mark.parametrize("symmetrize", [False, True])
def test_a_guide_that_has_not_run_is_left_as_it_is_without_observations(symmetrize):
    problem = one_hidden_layer()
    x, y = problem.args
    guide = problem.guide() if symmetrize else problem.base()
    for evaluate in (pp.predict, pp.to_arviz):
        with pytest.raises(ValueError, match=r"call guide\(x, y\) with observations, or train it"):
            evaluate(problem.model, guide, x, None, num_samples=2, progress=False)
    assert guide.prototype_trace is None
    assert not list(guide.parameters())
    guide(x, y)
    assert pp.predict(problem.model, guide, x, None, num_samples=2, progress=False).draws.shape == (
        2,
        len(x),
    )


def test_guides_that_draw_the_observations_are_refused():
    x = torch.linspace(-1, 1, 3)
    guide = AutoNormal(line)
    guide(x)
    for y in (x, None):
        with pytest.raises(ValueError, match="leaves no observation to predict: a guide whose"):
            pp.predict(line, guide, x, y, num_samples=2, progress=False)


def line_without_plate(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(slope * x, 0.5).to_event(1), obs=y)


def test_observations_without_a_plate_have_no_log_likelihood_each():
    x, y = torch.linspace(-2, 2, 5), torch.zeros(5)
    samples = {"slope": torch.tensor([0.1, 2.0])}
    with pytest.warns(UserWarning, match="have one log-likelihood together, and none each: put"):
        prediction = pp.predict(line_without_plate, samples, x, y, progress=False)
    assert prediction.log_likelihood is None
    assert torch.equal(prediction.means, samples["slope"][:, None] * x)
    with pytest.raises(ValueError, match="none has a log-likelihood of its own"):
        _ = prediction.log_predictive_density


def test_a_single_observation_has_its_log_likelihood():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    mu, y = torch.tensor([0.1, 2.0]), torch.tensor(0.5)
    prediction = pp.predict(model, {"mu": mu}, y, progress=False)
    torch.testing.assert_close(prediction.log_likelihood, dist.Normal(mu, 1.0).log_prob(y))


@pytest.mark.parametrize("draws_at_once", [1, 64])
def test_a_site_without_a_mean_is_refused(draws_at_once):
    def model(x, y=None, degrees=1.0):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(degrees, slope * x, 1.0), obs=y)

    x, samples = torch.linspace(-2, 2, 5), {"slope": torch.tensor([0.1, 2.0, 1.0])}
    options = {"draws_at_once": draws_at_once, "progress": False}
    with pytest.raises(ValueError, match="site 'y' has no mean in closed form: use to_arviz"):
        pp.predict(model, samples, x, **options)
    some = torch.tensor([3.0, 3.0, 3.0, 3.0, 0.5])
    with pytest.raises(ValueError, match="site 'y' has no mean in closed form: use to_arviz"):
        pp.predict(model, samples, x, degrees=some, **options)
    prediction = pp.predict(model, samples, x, degrees=1.5, **options)
    assert torch.equal(prediction.means, samples["slope"][:, None] * x)
