"""Dimensions of the exported posterior name units and plates, and select a unit across sites."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import (
    flattened_channels,
    gated_units,
    local_latents,
    normal,
    one_hidden_layer,
    recurrent,
    two_hidden_layers,
    units_in_plate,
)
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp


def export(problem, guide=None, **options):
    guide = guide or problem.guide(pp.InfoNCE(num_permutations=2))
    counts = {"num_samples": 3, "num_prior_samples": 2}
    return pp.to_arviz(problem.model, guide, *problem.args, progress=False, **counts | options)


def dims(data, group="posterior"):
    """Site -> its dimensions but chain and draw."""
    return {name: data[group][name].dims[2:] for name in data[group].data_vars}


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (
            one_hidden_layer(),
            {
                "w1": ("hidden_unit", "w1_dim_1"),
                "b1": ("hidden_unit",),
                "w2": ("w2_dim_0", "hidden_unit"),
                "b2": ("b2_dim_0",),
            },
        ),
        (
            two_hidden_layers(),
            {
                "w1": ("first_unit", "w1_dim_1"),
                "b1": ("first_unit",),
                "w2": ("second_unit", "first_unit"),
                "b2": ("second_unit",),
                "w3": ("w3_dim_0", "second_unit"),
            },
        ),
        (
            recurrent(),
            {
                "w_in": ("state_unit", "w_in_dim_1"),
                "w_rec": ("state_unit", "state_unit_2"),
                "w_out": ("w_out_dim_0", "state_unit"),
            },
        ),
        (
            flattened_channels(),
            {
                "kernel": ("channels_unit", "kernel_dim_1"),
                "bias": ("channels_unit",),
                "head": ("head_dim_0", "head_channels_entry"),
            },
        ),
        (
            gated_units(),
            {
                "fused": ("fused_units_entry", "fused_dim_1"),
                "out": ("out_dim_0", "units_unit"),
            },
        ),
        (
            units_in_plate(),
            {"w1": ("hidden_unit", "w1_dim_1"), "w2": ("hidden_unit",)},
        ),
        (
            local_latents(),
            {
                "w1": ("hidden_unit", "w1_dim_1"),
                "w2": ("w2_dim_0", "hidden_unit"),
                "shift": ("data",),
            },
        ),
    ],
    ids=str,
)
def test_sites_share_their_units(problem, expected):
    data = export(problem)
    assert dims(data) == dims(data, "prior") == expected
    for group in ("posterior_predictive", "log_likelihood", "prior_predictive"):
        assert dims(data, group) == {"y": ("data",)}
    assert data["observed_data"]["y"].dims == ("data",)
    assert data["constant_data"]["x"].dims == ("data", "x_dim_1")


def test_constants_share_the_rows_of_the_observations_where_that_is_clear():
    def model(x, weights, four, scalar):
        w = normal("w", 1)
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(w, 1.0), obs=torch.zeros(3))
        for rows, columns in (("left", "right"), ("top", "bottom")):
            with pyro.plate(rows, 4, dim=-2), pyro.plate(columns, 5, dim=-1):
                pyro.sample(f"y_{rows}", dist.Normal(w, 1.0), obs=torch.zeros(4, 5))
        pyro.sample("z", dist.Normal(w.sum(), 1.0), obs=torch.tensor(1.0))

    args = (torch.ones(3, 2), torch.ones(2), torch.ones(4), torch.tensor(2.0))
    options = {"num_samples": 2, "num_prior_samples": 0, "progress": False}
    constants = pp.to_arviz(model, AutoNormal(model), *args, **options)["constant_data"]
    assert constants["x"].dims == ("data", "x_dim_1")
    assert constants["weights"].dims == ("weights_dim_0",)
    assert constants["four"].dims == ("four_dim_0",)  # Both sites have four rows.
    assert constants["scalar"].size == 1
    renamed = pp.to_arviz(model, AutoNormal(model), *args, dims={"y": ["patient"]}, **options)
    assert renamed["constant_data"]["x"].dims == ("patient", "x_dim_1")
    unnamed = pp.to_arviz(model, AutoNormal(model), *args, dims={"y": []}, **options)
    assert unnamed["constant_data"]["x"].dims == ("x_dim_0", "x_dim_1")


def test_a_unit_is_selected_across_sites():
    posterior = export(one_hidden_layer())["posterior"]
    unit = posterior.isel(hidden_unit=2)
    np.testing.assert_array_equal(unit["w1"], posterior["w1"].values[:, :, 2])
    np.testing.assert_array_equal(unit["b1"], posterior["b1"].values[:, :, 2])
    np.testing.assert_array_equal(unit["w2"], posterior["w2"].values[:, :, :, 2])


def test_entries_of_structured_axes_tell_their_unit():
    channels = export(flattened_channels(channels=2, space=2))["posterior"]
    assert list(channels["head_channels_entry"].values) == [
        "channels 0 entry 0",
        "channels 0 entry 1",
        "channels 1 entry 0",
        "channels 1 entry 1",
    ]
    gated = export(gated_units(units=2))["posterior"]
    assert list(gated["fused_units_entry"].values) == [
        "units 0 part 0",
        "units 1 part 0",
        "units 0 part 1",
        "units 1 part 1",
    ]


def segments(x):
    """Two classes of hidden units along one axis, and one unit that stays where it is."""
    w1, w2 = normal("w1", 5, 2), normal("w2", 1, 5)
    h = x @ w1.mT
    f = torch.cat([torch.tanh(h[:, :2]), torch.sin(h[:, 2:4]), h[:, 4:]], -1) @ w2.mT
    pyro.sample("y", dist.Normal(f, 1.0).to_event(2), obs=torch.zeros(len(x), 1))


def test_segments_of_one_axis_tell_their_group():
    symmetry = pp.PermutationSymmetry(
        {
            "tanh": {"w1": pp.Axis(0, index=range(2)), "w2": pp.Axis(1, index=range(2))},
            "sin": {"w1": pp.Axis(0, index=range(2, 4)), "w2": pp.Axis(1, index=range(2, 4))},
        }
    )
    guide = AutoNormal(segments, init_scale=0.4)
    data = pp.to_arviz(
        segments, guide, torch.randn(3, 2), symmetry=symmetry, num_samples=2, progress=False
    )
    assert dims(data)["w1"] == ("w1_tanh_sin_entry", "w1_dim_1")
    labels = ["tanh 0", "tanh 1", "sin 0", "sin 1", "4"]
    assert list(data["posterior"]["w1_tanh_sin_entry"].values) == labels


def test_unsymmetrized_guides_take_the_symmetry_as_an_argument():
    problem = one_hidden_layer()
    plain = dims(export(problem, problem.base()))
    assert plain["b1"] == ("b1_dim_0",)
    named = dims(export(problem, problem.base(), symmetry=problem.symmetry()))
    assert named["b1"] == ("hidden_unit",)


def test_flips_of_signs_change_no_name():
    problem = one_hidden_layer()
    axes = {"w1": pp.Axis(0, sign=True), "b1": pp.Axis(0, sign=True), "w2": pp.Axis(1, sign=True)}
    signed = pp.PermutationSymmetry({"hidden": axes})
    assert dims(export(problem, problem.base(), symmetry=signed)) == dims(export(problem))


def test_symmetry_that_is_not_the_models_or_the_guides_is_refused():
    problem = one_hidden_layer()
    wrong = pp.PermutationSymmetry({"hidden": {"w1": 0}})
    with pytest.raises(pp.SymmetryVerificationError):
        export(problem, problem.base(), symmetry=wrong)
    with pytest.raises(ValueError, match="the guide brings its own symmetry"):
        export(problem, symmetry=wrong)


def test_names_of_the_users_replace_the_default_ones():
    data = export(
        one_hidden_layer(),
        dims={"w1": ["hidden_unit", "input"], "x": ["data", "input"], "b1": []},
        coords={"input": ["age", "height"], "hidden_unit": list("abcd"), "data": range(100, 112)},
    )
    assert dims(data)["w1"] == ("hidden_unit", "input")
    assert dims(data)["b1"] == ("b1_dim_0",)
    assert data["constant_data"]["x"].dims == ("data", "input")
    assert data["posterior"].sel(input="age", hidden_unit="c")["w1"].shape == (1, 3)
    assert data["log_likelihood"]["y"].sel(data=103).shape == (1, 3)


def test_names_of_the_users_take_the_place_of_labelled_entries():
    data = export(flattened_channels(), dims={"head": ["output", "feature"]})
    assert dims(data)["head"] == ("output", "feature")
    assert "head_channels_entry" not in data["posterior"].coords


def test_dimensions_give_way_to_sites_of_the_same_name():
    problem = one_hidden_layer()

    def model(x, y):
        normal("hidden_unit", 3)
        problem.model(x, y)

    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    data = pp.to_arviz(
        model, guide, *problem.args, symmetry=problem.symmetry(), num_samples=2, progress=False
    )
    assert dims(data)["b1"] == ("hidden_unit_2",)


def test_vectors_of_observations_have_event_dimensions():
    def model():
        w = normal("w", 1)
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 5, dim=-1):
            mean = w.expand(3)
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.zeros(4, 5, 3))

    guide = AutoNormal(model)
    data = pp.to_arviz(model, guide, num_samples=2, progress=False)
    assert data["observed_data"]["y"].dims == ("rows", "columns", "y_dim_2")
    assert dims(data, "posterior_predictive")["y"] == ("rows", "columns", "y_dim_2")
    assert dims(data, "log_likelihood")["y"] == ("rows", "columns")
