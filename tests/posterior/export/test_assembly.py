"""Plain arrays become ArviZ's object, the same in either generation, and ArviZ works on it.

These tests need no torch: ``make test-arviz-1`` runs them with ArviZ 1.x.
"""

import importlib.util
from pathlib import Path

import arviz as az
import arviz_checks
import numpy as np
import pytest

NUM_CHAINS, NUM_DRAWS, NUM_POINTS = 2, 400, 30
ATTRIBUTES = {
    "/": {"guide": "AutoNormal", "seed": 7, "elbo_lower": -12.25},
    "sample_stats": {"log_q_estimator": "Bethe()"},
}

pytestmark = arviz_checks.pytestmark


def _load(path):
    """A module by its file: importing it from its package would import torch."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PACKAGE = Path(__file__).parents[3] / "pyro_perm"
assemble = _load(PACKAGE / "posterior" / "export" / "assembly.py").assemble


def arrays(scale=0.2):
    """Draws for the mean of a standard Gaussian, with idle weights of three units.

    :param scale: standard deviation of the mean; the posterior's is 0.18.
    """
    rng = np.random.default_rng(0)
    chains = (NUM_CHAINS, NUM_DRAWS)
    y = rng.normal(size=NUM_POINTS)
    mean = y.mean() + scale * rng.normal(size=chains)
    log_likelihood = -0.5 * (y - mean[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
    log_q = -0.5 * ((mean - y.mean()) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    predictions = mean[..., None] + rng.normal(size=(*chains, NUM_POINTS))
    weights = rng.normal(size=(*chains, 3, 2))
    return {
        "posterior": {"mean": mean, "weight": weights, "bias": weights.sum(-1)},
        "posterior_predictive": {"y": predictions},
        "log_likelihood": {"y": log_likelihood},
        "sample_stats": {"lp": log_likelihood.sum(-1), "log_q": log_q},
        "prior": {"mean": rng.normal(size=chains)},
        "prior_predictive": {"y": rng.normal(size=(*chains, NUM_POINTS))},
        "observed_data": {"y": y},
        "constant_data": {"x": rng.normal(size=(NUM_POINTS, 2))},
    }


def export(groups, **changes):
    options = {
        "dims": {"/": {"y": ["data"], "weight": ["hidden_unit"], "bias": ["hidden_unit"]}},
        "coords": {"hidden_unit": ["a", "b", "c"]},
        "attributes": ATTRIBUTES,
    }
    return assemble(groups, **options | changes)


@pytest.fixture(scope="module")
def data():
    return export(arrays())


def test_every_array_is_there(data):
    for group, variables in arrays().items():
        for name, values in variables.items():
            np.testing.assert_array_equal(data[group][name], values)
            assert data[group][name].dims[:2] == ("chain", "draw") or "data" in group


def test_dimensions_have_the_same_names_in_either_generation(data):
    assert data["posterior"]["weight"].dims == ("chain", "draw", "hidden_unit", "weight_dim_1")
    assert data["posterior"]["bias"].dims == ("chain", "draw", "hidden_unit")
    assert data["observed_data"]["y"].dims == ("data",)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    assert data["constant_data"]["x"].dims == ("x_dim_0", "x_dim_1")


def test_a_unit_is_selected_across_sites(data):
    unit = data["posterior"].sel(hidden_unit="b")
    np.testing.assert_array_equal(unit["weight"], arrays()["posterior"]["weight"][:, :, 1])
    np.testing.assert_array_equal(unit["bias"], arrays()["posterior"]["bias"][:, :, 1])


def test_log_likelihood_of_vectors_keeps_the_dimensions_that_it_has():
    groups = arrays()
    y = np.zeros((NUM_POINTS, 2))
    groups["observed_data"] = {"y": y}
    groups["posterior_predictive"] = groups["prior_predictive"] = {"y": y[None, None]}
    vectors = export(
        groups, dims={"/": {"y": ["data", "output"]}}, coords={"output": ["left", "right"]}
    )
    assert vectors["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    assert vectors["observed_data"]["y"].dims == ("data", "output")


def test_file_keeps_arrays_dimensions_and_attributes(data, tmp_path):
    data.to_netcdf(tmp_path / "data.nc")
    read = az.from_netcdf(tmp_path / "data.nc")
    for group, variables in arrays().items():
        for name, values in variables.items():
            np.testing.assert_array_equal(read[group][name], values)
            assert read[group][name].dims == data[group][name].dims
    assert list(read["posterior"]["hidden_unit"].values) == ["a", "b", "c"]
    assert {name: read.attrs[name] for name in ATTRIBUTES["/"]} == ATTRIBUTES["/"]
    assert read["sample_stats"].attrs["log_q_estimator"] == "Bethe()"


def test_empty_groups_are_left_out():
    groups = arrays() | {"constant_data": {}, "prior": {}}
    assert not {"constant_data", "prior"} & set(export(groups))


@pytest.mark.slow
def test_arviz_ranks_summarizes_and_plots(data):
    arviz_checks.check_ranking(data, export(arrays(scale=0.3)))
    arviz_checks.check_summary(data, ["mean", "weight"])
    arviz_checks.check_plots(data, ["mean", "bias"], {"hidden_unit": ["a", "c"]})


def test_arviz_warns_of_high_pareto_k():
    with pytest.warns(UserWarning, match="parameter of Pareto distribution"):
        az.loo(export(arrays(scale=3.0)))


@pytest.mark.skipif(not arviz_checks.GENERATION, reason="ArviZ 0.x has no such function")
def test_leave_one_out_corrects_for_the_approximation(data):
    stats = data["sample_stats"]
    exact = az.loo(export(arrays(scale=1 / np.sqrt(NUM_POINTS))))
    corrected = az.loo_approximate_posterior(data, log_p=stats["lp"], log_q=stats["log_q"])
    plain = az.loo(data)
    assert abs(corrected.elpd - exact.elpd) < abs(plain.elpd - exact.elpd)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": {"/": {"w": ["hidden_unit"]}}}, "dims names 'w', but the variables are"),
        (
            {"dims": {"/": {"bias": ["a", "b"]}}},
            "dims names .* for 'bias', whose dimensions .* number 1",
        ),
        (
            {"dims": {"/": {"weight": ["a", "a"]}}},
            "for 'weight': the names of a variable must differ",
        ),
        ({"dims": {"/": {"bias": ["draw"]}}}, "for 'bias': the names of a variable must differ"),
        ({"coords": {"unit": [1]}}, "coords names 'unit', but the dimensions are"),
        ({"coords": {"hidden_unit": [1]}}, "1 entries for dimension 'hidden_unit', .* length 3"),
    ],
)
def test_dimensions_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        export(arrays(), **changes)
