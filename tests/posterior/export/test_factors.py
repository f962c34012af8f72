"""Terms of the likelihood by pyro.factor: counted where they belong to observations, else named."""

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp

TIMES = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
CENSORED = torch.tensor([False, False, True, False, True])


def export(model, guide=None):
    guide = guide or AutoNormal(model, init_scale=0.1)
    return pp.to_arviz(model, guide, num_samples=30, num_prior_samples=0, progress=False)


def values(data, dataset, name):
    return torch.as_tensor(data[dataset][name].values[0])


def event(rate):
    return dist.Exponential(rate)


def survival(rate, time):
    """``log P(T > time)``."""
    return -rate * time


def in_one_plate():
    """Every row is either an event or censored."""
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("patients", 5):
        with pyro.poutine.mask(mask=~CENSORED):
            pyro.sample("time", event(rate), obs=TIMES)
        with pyro.poutine.mask(mask=CENSORED):
            pyro.factor("censored", survival(rate, TIMES))


def in_two_plates():
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("events", 3):
        pyro.sample("time", event(rate), obs=TIMES[~CENSORED])
    with pyro.plate("survivors", 2):
        pyro.factor("censored", survival(rate, TIMES[CENSORED]))


def all_censored():
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("survivors", 5):
        pyro.factor("censored", survival(rate, TIMES))


def expected(rate):
    """Log-likelihood of every patient, by the textbook."""
    rate = rate.unsqueeze(-1)
    return torch.where(CENSORED, -rate * TIMES, rate.log() - rate * TIMES)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_censored_rows_count_with_the_events_of_their_plate():
    data = export(in_one_plate)
    assert set(data["log_likelihood"]) == {"time"}
    rate = values(data, "posterior", "rate")
    torch.testing.assert_close(values(data, "log_likelihood", "time"), expected(rate))
    assert az.loo(data).n_data_points == 5


def test_censored_rows_of_another_plate_have_a_log_likelihood_of_their_own():
    data = export(in_two_plates)
    rate = values(data, "posterior", "rate")
    events, survivors = (values(data, "log_likelihood", name) for name in ("time", "censored"))
    torch.testing.assert_close(events, expected(rate)[:, ~CENSORED])
    torch.testing.assert_close(survivors, expected(rate)[:, CENSORED])
    assert data["log_likelihood"]["censored"].dims == ("chain", "draw", "survivors")


def test_a_likelihood_of_factors_alone_is_exported():
    data = export(all_censored)
    rate = values(data, "posterior", "rate")
    found = values(data, "log_likelihood", "censored")
    torch.testing.assert_close(found, -rate.unsqueeze(-1) * TIMES)
    assert "observed_data" not in data


@pytest.mark.parametrize("model", [in_one_plate, in_two_plates, all_censored])
def test_the_joint_is_the_same_however_it_is_written(model):
    data = export(model)
    total = sum(values(data, "log_likelihood", n).sum(-1) for n in data["log_likelihood"])
    prior = dist.LogNormal(0.0, 1.0).log_prob(values(data, "posterior", "rate"))
    torch.testing.assert_close(values(data, "sample_stats", "lp"), prior + total)


def outside_of_plates():
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("events", 3):
        pyro.sample("time", event(rate), obs=TIMES[~CENSORED])
    pyro.factor("censored", survival(rate, TIMES[CENSORED]).sum())


def among_latent_sites():
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("patients", 5):
        frailty = pyro.sample("frailty", dist.LogNormal(0.0, 0.1))
        with pyro.poutine.mask(mask=~CENSORED):
            pyro.sample("time", event(rate * frailty), obs=TIMES)
        with pyro.poutine.mask(mask=CENSORED):
            pyro.factor("censored", survival(rate * frailty, TIMES))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (outside_of_plates, "lies in no plate, .* put it into the plate of its observations"),
        (among_latent_sites, "shares plate 'patients' with the latent site 'frailty'"),
    ],
)
def test_factors_without_a_place_are_named(model, why):
    with pytest.warns(UserWarning, match=f"'censored' is part of lp, but not of .*{why}") as seen:
        data = export(model)
    assert seen[0].filename == __file__
    assert set(data["log_likelihood"]) == {"time"}
    guide = AutoNormal(model)
    guide()
    with pytest.warns(UserWarning, match=f"'censored' is part of the likelihood.*{why}") as seen:
        pp.predict(model, guide, num_samples=2, progress=False)
    assert seen[0].filename == __file__


def test_observations_take_the_place_of_factors_among_latent_sites():
    """As the warning advises: a censored row is a Bernoulli observation, with P(T > t)."""

    def model():
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("patients", 5):
            frailty = pyro.sample("frailty", dist.LogNormal(0.0, 0.1))
            alive = dist.Bernoulli(survival(rate * frailty, TIMES).exp())
            pyro.sample("alive", alive, obs=torch.ones(5))

    data = export(model)
    hazard = values(data, "posterior", "rate").unsqueeze(-1) * values(data, "posterior", "frailty")
    torch.testing.assert_close(values(data, "log_likelihood", "alive"), -hazard * TIMES)


def test_predictions_count_censored_rows():
    guide = AutoNormal(in_one_plate, init_scale=0.1)
    guide()
    found = pp.predict(in_one_plate, guide, num_samples=20, progress=False)
    rate = 1 / found.means[:, 0]
    torch.testing.assert_close(found.log_likelihood, expected(rate))


def test_factors_scale_as_the_plate_does_in_the_joint_alone():
    def model(size):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("patients", 5, subsample_size=size) as i:
            pyro.factor("censored", survival(rate, TIMES[i]))

    guide = AutoNormal(model)
    options = {"num_samples": 4, "num_prior_samples": 0, "progress": False, "seed": 1}
    guide(2)
    part, whole = (pp.to_arviz(model, guide, size, **options) for size in (2, 5))
    for data in (part, whole):
        rate = values(data, "posterior", "rate").unsqueeze(-1)
        torch.testing.assert_close(values(data, "log_likelihood", "censored"), -rate * TIMES)
        lp = dist.LogNormal(0.0, 1.0).log_prob(rate).squeeze(-1) - (rate * TIMES).sum(-1)
        torch.testing.assert_close(values(data, "sample_stats", "lp"), lp)
