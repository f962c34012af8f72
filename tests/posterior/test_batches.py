"""A batch that was passed to the model is its data, whatever the size of its plate."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_median

import pyro_perm as pp

N, BATCH = 40, 10


def weights():
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    return w1, w2


def passed(x, y=None):
    """The plate scales what a batch says to the size of the training set."""
    w1, w2 = weights()
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("obs", dist.Normal(torch.tanh(x @ w1) @ w2, 0.3), obs=y)


def looked_up(x, y=None):
    """The plate chooses the rows of a batch."""
    w1, w2 = weights()
    with pyro.plate("data", len(x), subsample_size=min(BATCH, len(x))) as i:
        obs = None if y is None else y[i]
        pyro.sample("obs", dist.Normal(torch.tanh(x[i] @ w1) @ w2, 0.3), obs=obs)


@pytest.fixture
def x():
    return torch.randn(BATCH, 2)


@pytest.fixture
def guide(x):
    guide = pp.AutoSymmetrized(AutoNormal(passed, init_loc_fn=pp.init_to_fan_in))
    guide(x, x[:, 0])
    return guide


@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_predictions_have_a_row_for_each_input(guide, x, with_data, batch_size):
    args = (x, x[:, 0]) if with_data else (x,)
    options = {"batch_size": batch_size, "num_samples": 7, "progress": False}
    found = pp.predict(passed, guide, *args, **options)
    stock = Predictive(passed, guide=guide, num_samples=7)(x)["obs"]
    assert found.draws.shape == found.means.shape == stock.shape == (7, BATCH)
    assert found.mean.unique().numel() == BATCH
    assert (found.log_likelihood is not None) == with_data
    if with_data:
        expected = dist.Normal(found.means, 0.3).log_prob(x[:, 0])
        torch.testing.assert_close(found.log_likelihood, expected)


def test_a_single_row_is_a_batch(guide, x):
    found = pp.predict(passed, guide, x[:1], x[:1, 0], num_samples=3, progress=False)
    assert found.draws.shape == (3, 1)


def test_exports_hold_the_batch_and_the_joint_of_the_training_set(guide, x):
    y = x[:, 0]
    data = pp.to_arviz(passed, guide, x, y, num_samples=50, progress=False)
    for dataset in ("log_likelihood", "posterior_predictive", "prior_predictive"):
        assert data[dataset]["obs"].shape[2:] == (BATCH,)
    np.testing.assert_array_equal(data["observed_data"]["obs"], y)
    posterior = {name: torch.as_tensor(v.values[0]) for name, v in data["posterior"].items()}
    f = (torch.tanh(x @ posterior["w1"]) @ posterior["w2"].unsqueeze(-1)).squeeze(-1)
    log_likelihood = dist.Normal(f, 0.3).log_prob(y)
    np.testing.assert_allclose(data["log_likelihood"]["obs"][0], log_likelihood)
    prior = sum(dist.Normal(0.0, 1.0).log_prob(w).flatten(1).sum(1) for w in posterior.values())
    lp = prior + N / BATCH * log_likelihood.sum(1)
    np.testing.assert_allclose(data["sample_stats"]["lp"][0], lp)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_leave_one_out_counts_each_observation_once(guide, x):
    data = pp.to_arviz(passed, guide, x, x[:, 0], num_samples=50, progress=False)
    assert az.loo(data).n_data_points == BATCH


def test_models_that_look_their_rows_up_are_seen_whole(guide):
    x = torch.randn(N, 2)
    found = pp.predict(looked_up, guide, x, x[:, 0], num_samples=3, progress=False)
    assert found.draws.shape == (3, N)
    expected = dist.Normal(found.means, 0.3).log_prob(x[:, 0])
    torch.testing.assert_close(found.log_likelihood, expected)
    values = {name: value for name, value in guide.median().items()}
    losses = [pp.negative_log_joint(model, x, x[:, 0])(values) for model in (looked_up, passed)]
    torch.testing.assert_close(*losses)


def test_a_batch_counts_for_the_whole_training_set_in_the_joint(guide, x):
    values = guide.median()
    one, two = (pp.negative_log_likelihood(passed, x[:k], x[:k, 0])(values) for k in (5, BATCH))
    assert 0.3 < one / two < 3.0  # Not half of it.


def encoded(x):
    """A local latent for each row, drawn by an encoder from the batch."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", N, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) * w, 0.5).to_event(1), obs=x)


def encoder(x):
    pyro.sample("w", dist.Normal(torch.tensor([0.0, 1.0]), 0.1).to_event(1))
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(x[:, 1], 0.1))


def test_latent_codes_belong_to_the_rows_of_the_batch(x):
    data = pp.to_arviz(encoded, encoder, x, num_samples=30, progress=False)
    z = data["posterior"]["z"]
    assert z.shape == (1, 30, BATCH) and z.dims[2] == "data"
    np.testing.assert_allclose(z.mean(("chain", "draw")), x[:, 1], atol=0.1)
    assert data["log_likelihood"]["x"].shape == (1, 30, BATCH)


def test_parameters_that_are_looked_up_do_not_fit_a_batch_that_was_passed(x):
    """Nothing tells which rows of the training set the batch has."""
    plates = lambda x: pyro.plate("data", N, subsample_size=len(x), dim=-1)  # noqa: E731
    guide = AutoNormal(encoded, create_plates=plates, init_loc_fn=init_to_median)
    guide(x)
    message = "looks up its parameters by the indices of plate 'data', .* subsample=indices"
    for evaluate in (pp.to_arviz, pp.predict):
        with pytest.raises(ValueError, match=message):
            evaluate(encoded, guide, x, num_samples=2, progress=False)


def test_rows_of_a_batch_can_be_named(x):
    """Then the guide looks up those that the model was passed."""
    rows = torch.arange(3, 3 + BATCH)

    def model(x, rows):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", N, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * w, 0.5).to_event(1), obs=x)

    plates = lambda x, rows: pyro.plate("data", N, subsample=rows, dim=-1)  # noqa: E731
    guide = AutoNormal(model, create_plates=plates, init_scale=0.01)
    guide(x, rows)
    data = pp.to_arviz(model, guide, x, rows, num_samples=30, progress=False)
    z = data["posterior"]["z"].mean(("chain", "draw"))
    np.testing.assert_allclose(z, guide.locs.z[rows].detach(), atol=0.02)


def test_samples_of_all_rows_do_not_fit_a_batch_that_was_passed(x):
    samples = {"w": torch.zeros(3, 2), "z": torch.zeros(3, N)}
    with pytest.raises(
        ValueError, match=r"site 'z' has shape \(10,\) in the model, .* only scales"
    ):
        pp.predict(encoded, samples, x, progress=False)


def test_a_batch_that_was_passed_while_rows_are_looked_up_cannot_be_told(x):
    """The plate's rows are others than those of the batch."""
    offsets = torch.zeros(N)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", N, subsample_size=len(x)) as i:
            pyro.sample("y", dist.Normal(x @ w + offsets[i], 0.5), obs=y)

    guide = AutoNormal(model)
    guide(x, x[:, 0])
    message = r"site 'y' observes an argument as it was passed, in 10 rows, .* subsample=rows"
    for evaluate in (pp.to_arviz, pp.predict):
        with pytest.raises(ValueError, match=message):
            evaluate(model, guide, x, x[:, 0], num_samples=2, progress=False)
