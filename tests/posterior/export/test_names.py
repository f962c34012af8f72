"""Names and shapes of any kind are exported: those of arguments, sites and plates may meet."""

from contextlib import ExitStack

import hypothesis.strategies as st
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from marks import examples
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp

NAMES = ("y", "x", "data", "draw_2", "w_unit")


def export(model, args=(), **options):
    guide = AutoNormal(model)
    guide(*args)
    counts = {"num_samples": 2, "num_prior_samples": 2, "progress": False}
    return pp.to_arviz(model, guide, *args, **counts | options)


@st.composite
def shapes(draw):
    """Shape of an argument; batch and event shape of an observed site."""
    sizes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    return draw(sizes), draw(sizes), draw(st.lists(st.integers(1, 3), max_size=2).map(tuple))


def observed(name, batch, event, mean):
    """An observed site, one plate a dimension of its batch."""
    with ExitStack() as stack:
        for dim, size in enumerate(batch, start=-len(batch)):
            stack.enter_context(pyro.plate(f"{name}_plate_{-dim}", size, dim=dim))
        values = torch.arange(float(torch.Size(batch + event).numel())).reshape(batch + event)
        pyro.sample(name, dist.Normal(mean, 1.0).expand(event).to_event(len(event)), obs=values)


@settings(max_examples=examples(12), deadline=None)
@given(shapes())
def test_an_argument_may_have_the_name_of_an_observed_site(found):
    argument, batch, event = found

    def model(y):
        observed("y", batch, event, pyro.sample("w", dist.Normal(0.0, 1.0)))

    pyro.clear_param_store()
    data = export(model, (torch.full(argument, -1.0),))
    assert data["observed_data"]["y"].shape == batch + event
    assert data["constant_data"]["y"].shape == argument
    assert data["posterior_predictive"]["y"].shape == (1, 2, *batch, *event)
    assert data["log_likelihood"]["y"].shape == (1, 2, *batch)
    plates = tuple(f"y_plate_{-dim}" for dim in range(-len(batch), 0))
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", *plates)
    assert data["observed_data"]["y"].dims[: len(batch)] == plates
    np.testing.assert_array_equal(data["constant_data"]["y"], -np.ones(argument))


@settings(max_examples=examples(12), deadline=None)
@given(st.permutations(NAMES), st.integers(0, 2), st.sampled_from([(3,), (3, 2)]))
def test_plates_give_way_to_variables_of_the_same_name(names, rank, shape):
    site, plate, *_ = names

    def model(**arguments):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2] * rank).to_event(rank))
        with pyro.plate(plate, 3):
            pyro.sample(site, dist.Normal(w.sum(), 1.0), obs=torch.zeros(3))

    arguments = {name: torch.ones(shape) for name in names[1:]}
    pyro.clear_param_store()
    data = export(lambda: model(**arguments))
    assert data["observed_data"][site].dims == (plate,)
    guide = AutoNormal(model)
    guide(**arguments)
    options = {"num_samples": 2, "num_prior_samples": 0, "progress": False}
    data = pp.to_arviz(model, guide, **arguments, **options)
    assert set(data["constant_data"].data_vars) == arguments.keys()
    (dim,) = data["observed_data"][site].dims
    assert dim.startswith(f"{plate}_") and dim not in names
    for name in arguments:
        assert data["constant_data"][name].dims[0] == dim
        assert data["constant_data"][name].shape == shape


@pytest.mark.parametrize("plate", ["chain", "draw"])
def test_plates_give_way_to_the_dimensions_of_draws(plate):
    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate(plate, 3):
            pyro.sample("y", dist.Normal(w, 1.0), obs=torch.zeros(3))

    data = export(model)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", f"{plate}_2")


@pytest.mark.parametrize("site", ["chain", "draw"])
def test_sites_with_the_names_of_arviz_are_refused(site):
    def model():
        w = pyro.sample(site, dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=f"'{site}' is a variable of posterior and a dimension"):
        export(model)


BATCHES = st.lists(st.sampled_from([1, 3]), max_size=2).map(tuple)
KINDS = st.sampled_from(["precision_matrix", "covariance_matrix", "scale_tril"])


@pytest.mark.filterwarnings("ignore:the observations at site 'y' have one log-likelihood")
@settings(max_examples=examples(12), deadline=None)
@given(BATCHES, BATCHES, KINDS, st.booleans())
def test_batches_of_multivariate_families_broadcast(of_mean, of_matrix, kind, as_prior):
    matrix = torch.eye(2).expand(*of_matrix, 2, 2) * 2.0
    mean = torch.zeros(*of_mean, 2)
    batch = tuple(torch.broadcast_shapes(of_mean, of_matrix))

    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with ExitStack() as stack:
            for dim, size in enumerate(batch, start=-len(batch)):
                stack.enter_context(pyro.plate(f"plate_{-dim}", size, dim=dim))
            vectors = dist.MultivariateNormal(mean + w, **{kind: matrix})
            if as_prior:
                v = pyro.sample("v", vectors)
                vectors = dist.Normal(v, 1.0).to_event(1)
            pyro.sample("y", vectors, obs=torch.zeros(*batch, 2))

    pyro.clear_param_store()
    data = export(model)
    assert data["log_likelihood"]["y"].shape == (1, 2, *batch)
    assert data["posterior_predictive"]["y"].shape == (1, 2, *batch, 2)
    if as_prior:
        assert data["posterior"]["v"].shape == (1, 2, *batch, 2)
        return
    posterior = torch.as_tensor(data["posterior"]["w"].values[0])
    vectors = dist.MultivariateNormal(
        mean + posterior.reshape(2, *[1] * len(batch), 2), **{kind: matrix}
    )
    expected = vectors.log_prob(torch.zeros(2)).expand(2, *batch)
    np.testing.assert_allclose(data["log_likelihood"]["y"][0], expected)
    found = pp.predict(model, {"w": posterior}, progress=False)
    assert found.draws.shape == found.means.shape == (2, *batch, 2)
    if not batch:  # Of one vector, the entries are not told apart.
        assert found.log_likelihood is None
        return
    assert found.log_likelihood.shape == (2, *batch)
