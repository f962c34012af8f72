"""Units start apart, or the user is told."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import normal, one_hidden_layer, two_hidden_layers, units_in_plate
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_sample
from pyro.optim import Adam

import pyro_perm as pp


def model():
    normal("weight", 400, 100)
    normal("transposed", 25, 900)
    normal("kernel", 200, 8, 3, 3)
    normal("bias", 5000)
    with pyro.plate("units", 3000):
        pyro.sample("row", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("scalar", dist.Normal(0.0, 1.0))
    pyro.sample("scale", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))


def initial(init_loc_fn):
    guide = AutoNormal(model, init_loc_fn=init_loc_fn)
    guide()
    return guide.median()


@pytest.mark.parametrize("init", [pp.init_to_fan_in, pp.init_to_fan_in()])
def test_standard_deviations_are_those_of_the_fan_in(init):
    values = initial(init)
    expected = {
        "weight": 0.1,
        "transposed": 1 / 30,
        "kernel": 1 / math.sqrt(72),
        "bias": 0.1,
        "row": 0.1,
        "scalar": 0.1,
    }
    for name, std in expected.items():
        # The relative error of a standard deviation of n normals is 1 / sqrt(2 n).
        tolerance = 5 / math.sqrt(2 * values[name].numel())
        assert values[name].std().item() == pytest.approx(std, rel=tolerance)
        assert values[name].mean().abs().item() < 5 * std / math.sqrt(values[name].numel())


def test_out_dim_is_the_dimension_that_is_no_input():
    values = initial(pp.init_to_fan_in(out_dim=1))
    assert values["transposed"].std().item() == pytest.approx(1 / 5, rel=0.03)


def test_constrained_sites_start_where_pyro_puts_them():
    values, expected = initial(pp.init_to_fan_in), initial(init_to_feasible)
    torch.testing.assert_close(values["scale"], expected["scale"])


def test_a_seed_fixes_the_start():
    values = []
    for _ in range(2):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        values.append(initial(pp.init_to_fan_in))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)


def steps(problem, route, **kwargs):
    """The warnings of three steps of training."""
    base, loss = problem.base(**kwargs), Trace_ELBO()
    guide = base
    if route == "guide":
        guide = pp.AutoSymmetrized(base, problem.symmetry())
    elif route == "loss":
        loss = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry())
    else:
        guide, loss = pp.AutoSymmetrized(base, problem.symmetry()), pp.TraceSymmetrized_ELBO()
    svi = SVI(problem.model, guide, Adam({"lr": 0.01}), loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            svi.step(*problem.args)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("route", ["guide", "loss", "both"])
@pytest.mark.parametrize("problem", [two_hidden_layers(), units_in_plate()], ids=str)
def test_coinciding_units_are_reported_once(problem, route):
    (message,) = steps(problem, route, init_loc_fn=init_to_feasible)
    for group in problem.spec:
        assert f"'{group}'" in message
    assert "saddle" in message and "init_loc_fn=init_to_fan_in" in message


@pytest.mark.parametrize("route", ["guide", "loss", "both"])
@pytest.mark.parametrize("problem", [two_hidden_layers(), units_in_plate()], ids=str)
def test_units_that_start_apart_are_not_reported(problem, route):
    assert steps(problem, route) == []


def test_only_the_groups_that_coincide_are_named():
    problem = two_hidden_layers()

    def init(site):
        return init_to_feasible(site) if site["name"] in ("w1", "b1") else pp.init_to_fan_in(site)

    guide = pp.AutoSymmetrized(AutoNormal(problem.model, init_loc_fn=init), problem.symmetry())
    guide(*problem.args)  # w2 tells the units of both groups apart
    pyro.clear_param_store()

    def init_but_last(site):
        return init_to_feasible(site) if site["name"] != "w1" else pp.init_to_fan_in(site)

    base = AutoNormal(problem.model, init_loc_fn=init_but_last)
    with pytest.warns(UserWarning, match="all units of group 'second' have"):
        pp.AutoSymmetrized(base, problem.symmetry())(*problem.args)


def test_positive_units_are_started_apart_by_what_the_warning_says():
    def model():
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=torch.tensor(1.0))

    def start(init):
        pyro.clear_param_store()
        symmetry = pp.PermutationSymmetry({"units": {"w": 0}})
        pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=init), symmetry)()

    with pytest.warns(UserWarning, match=r"positive ones, .*init_to_sample"):
        start(pp.init_to_fan_in)
    start(init_to_sample)  # Warnings are errors.


def test_groups_of_one_unit_are_not_reported():
    problem = one_hidden_layer(1)
    guide = pp.AutoSymmetrized(AutoNormal(problem.model), problem.symmetry())
    guide(*problem.args)
