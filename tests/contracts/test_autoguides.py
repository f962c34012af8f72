"""What Pyro expects of its own autoguides holds through the wrapper, or is refused by name."""

from __future__ import annotations

import io
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from autoguides import JOINT, LOSSES, REFUSED, SERVED, UNITS, kinds, losses, steps, units, wrapped
from marks import slow_where
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoCallable,
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGuide,
    AutoGuideList,
    AutoNormal,
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.nn import PyroModule, PyroParam
from pyro.util import check_model_guide_match
from torch import nn

import pyro_perm as pp
from pyro_perm.trace_sites import log_ratio_nodes

pytestmark = [
    pytest.mark.filterwarnings("ignore:group 'units' leaves the log joint as it is"),
    # Where all units start is what some of these tests are about.
    pytest.mark.filterwarnings("ignore:all units of group 'units' have the same"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(kind):
    with pytest.raises(TypeError, match=rf"cannot symmetrize {kind.__name__}"):
        wrapped(kind(units))


@kinds
@pytest.mark.parametrize("permute", [True, False])
def test_scores_are_on_auxiliary_sites(kind, permute):
    guide = wrapped(kind(units, init_loc_fn=pp.init_to_fan_in), permute=permute)
    guide_trace = poutine.trace(guide).get_trace()
    model_trace = poutine.trace(poutine.replay(units, trace=guide_trace)).get_trace()
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
    auxiliary = guide_trace.nodes.keys() - model_trace.nodes.keys()
    scored = {n for n in auxiliary if guide_trace.nodes[n].get("log_prob_sum", 0) != 0}
    ratio = log_ratio_nodes(guide_trace.nodes).keys()
    latent = "w_unconstrained" if kind is AutoNormal else f"_{kind.__name__}_latent"
    assert scored == {latent, *ratio}
    assert guide_trace.nodes["w"]["log_prob_sum"] == 0
    assert model_trace.nodes["w"]["log_prob_sum"] != 0


@kinds
@losses
def test_factors_of_the_model_count_once(kind, loss):
    def model(log_factor):
        units()
        pyro.factor("outside", log_factor)
        with pyro.plate("plate", 3):
            pyro.factor("inside", log_factor)
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    guide, loss = wrapped(kind(model, init_loc_fn=pp.init_to_fan_in)), loss()
    loss.loss(model, guide, torch.tensor(0.0))
    values = []
    for factor in (5.0, 4.0):
        pyro.set_rng_seed(123)
        values.append(loss.loss(model, guide, torch.tensor(factor)))
    assert values[0] - values[1] == pytest.approx(-4.0)


def many_shapes():
    units()
    pyro.sample("scalar", dist.Normal(0.0, 1.0))
    with pyro.plate("plate", 4):
        pyro.sample("in_plate", dist.Normal(torch.zeros(4), 1.0))
    pyro.sample("correlated", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(5)))
    pyro.sample("masked", dist.Normal(0, 1).expand((2,)).mask(torch.arange(2) > 0).to_event(1))
    pyro.sample("positive", dist.LogNormal(0.0, 1.0))
    pyro.sample("factor", dist.LKJCholesky(3, 1.0))


INITIAL_VALUES = [
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_generated(generate=lambda: init_to_value(values={"w": torch.arange(UNITS).double()})),
    pp.init_to_fan_in,
]


@kinds
@pytest.mark.parametrize("init_loc_fn", INITIAL_VALUES)
def test_shapes_and_initial_values_of_all_sorts(kind, init_loc_fn):
    guide = wrapped(kind(many_shapes, init_loc_fn=init_loc_fn))
    for loss in LOSSES:
        assert math.isfinite(loss().loss(many_shapes, guide))
    drawn, model_trace = guide(), poutine.trace(many_shapes).get_trace()
    assert {n: v.shape for n, v in drawn.items()} == {
        n: model_trace.nodes[n]["value"].shape for n in drawn
    }
    assert drawn.keys() == guide.median().keys()


@kinds
def test_sequential_plates_are_refused_as_pyro_refuses_them(kind):
    def model():
        units()
        for i in pyro.plate("plate", 2):
            pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match=r"sequential pyro\.plate"):
        wrapped(kind(model))()


def three_supports():
    units()
    pyro.sample("y", dist.LogNormal(0.0, 1.0))
    pyro.sample("z", dist.Beta(2.0, 2.0))


def point_and(rest):
    guide = AutoGuideList(three_supports)
    guide.append(AutoDelta(poutine.block(three_supports, expose=["y"])))
    guide.append(rest(poutine.block(three_supports, hide=["y"])))
    return guide


def function_and_vector():
    def draw_y():
        loc = pyro.param("y_loc", torch.tensor(0.0))
        pyro.sample("y", dist.LogNormal(loc, 0.5))

    guide = AutoGuideList(three_supports)
    guide.append(AutoCallable(three_supports, draw_y, lambda: {"y": pyro.param("y_loc").exp()}))
    guide.append(AutoDiagonalNormal(poutine.block(three_supports, hide=["y"])))
    return guide


class DrawsUnits(AutoGuide):
    """A guide written out, with parameters of both kinds."""

    def __init__(self, model):
        super().__init__(model)
        self.loc = nn.Parameter(torch.linspace(-0.1, 0.1, UNITS))
        self.scale = PyroParam(torch.full((UNITS,), 0.3), constraint=constraints.positive)

    def forward(self):
        return {"w": pyro.sample("w", dist.Normal(self.loc, self.scale).to_event(1))}

    def median(self):
        return {"w": self.loc.detach()}


def module_and_vector():
    guide = AutoGuideList(three_supports)
    guide.custom = DrawsUnits(three_supports)
    guide.rest = AutoDiagonalNormal(poutine.block(three_supports, hide=["w"]))
    return guide


def nested_lists():
    guide = AutoGuideList(three_supports)
    guide.append(AutoNormal(poutine.block(three_supports, expose=["w", "y"])))
    inner = AutoGuideList(poutine.block(three_supports, expose=["z"]))
    inner.flow = AutoDiagonalNormal(poutine.block(three_supports, expose=["z"]))
    guide.append(inner)
    return guide


GUIDES = {kind.__name__: partial(kind, three_supports) for kind in SERVED} | {
    "a point and an AutoNormal": partial(point_and, AutoNormal),
    "a point and an AutoDiagonalNormal": partial(point_and, AutoDiagonalNormal),
    "a function and a vector": function_and_vector,
    "a module and a vector": module_and_vector,
    "nested lists": nested_lists,
}
guides = pytest.mark.parametrize("made", GUIDES)


@pytest.mark.slow
@guides
def test_medians_are_those_of_the_posterior(made):
    """Here the prior: the wrapper leaves the mode of a symmetric posterior where it is."""
    guide = wrapped(GUIDES[made]())
    loss = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=0)
    steps(three_supports, guide, loss, 80)
    median = guide.median()
    torch.testing.assert_close(median["w"], torch.zeros(UNITS), rtol=0, atol=1.0)
    mode = -1.0 if "point" in made else 0.0
    assert median["y"].log().item() == pytest.approx(mode, abs=0.3)
    assert median["z"].item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
@kinds
def test_quantiles_are_in_order_and_wide(kind):
    guide = wrapped(kind(three_supports))
    loss = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=0)
    steps(three_supports, guide, loss, 80)
    quantiles, median = guide.quantiles([0.1, 0.5, 0.9]), guide.median()
    for name, (low, middle, high) in quantiles.items():
        torch.testing.assert_close(middle, median[name])
        assert (low < middle).all() and (middle < high).all()
    low, middle, high = quantiles["z"]
    assert low > 0.01 and low + 0.1 < middle and middle + 0.1 < high and high < 0.99


# Pyro does not compile what a function keeps in the param store.
@pytest.mark.parametrize(
    "made",
    slow_where(
        lambda name: name not in ("AutoNormal", "nested lists"),
        [name for name in GUIDES if "function" not in name],
    ),
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_guides_can_be_saved_and_loaded(made):
    guide = wrapped(GUIDES[made](), permute=False)
    guide()
    pyro.set_rng_seed(0)
    expected = guide.call()
    compiled = torch.jit.trace_module(guide, {"call": ()}, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(compiled, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    pyro.set_rng_seed(0)
    torch.testing.assert_close(loaded.call(), expected)
    parameters = dict(guide.named_parameters())
    assert {name for name, _ in loaded.named_parameters()} == parameters.keys()


@kinds
def test_discrete_sites_are_enumerated_by_a_part_of_their_own(kind):
    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    def model(data):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(UNITS)))
        locs = pyro.sample("w", dist.Normal(0.0, 10.0).expand([UNITS]).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample(
                "assignment", dist.Categorical(weights), infer={"enumerate": "parallel"}
            )
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    guide = AutoGuideList(model)
    estimator = pp.ImportanceSampled(2) if issubclass(kind, JOINT) else None
    sites = {"w": 0} if kind is not AutoNormal else {"w": 0, "weights": 0}
    base = kind(poutine.block(model, hide=["assignment"]), init_loc_fn=init_to_sample)
    if kind is AutoNormal:
        guide.append(pp.AutoSymmetrized(base, pp.PermutationSymmetry({"units": sites})))
    else:
        guide.append(base)
    guide.append(AutoDiscreteParallel(poutine.block(model, expose=["assignment"])))
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    assert math.isfinite(loss.loss_and_grads(model, guide, data))
    if kind is not AutoNormal:  # The weights of the components are permuted too, on the simplex.
        symmetry = pp.PermutationSymmetry({"units": {"w": 0, "weights": 0}})
        wrapped_base = pp.AutoSymmetrized(
            kind(poutine.block(model, hide=["assignment"])), symmetry, estimator=estimator
        )
        with pytest.raises(TypeError, match="'weights' is a function of its part of the vector"):
            wrapped_base(data)


@kinds
def test_initial_values_are_those_of_the_function(kind):
    values = {"w": torch.randn(UNITS), "y": torch.rand(()), "z": torch.tensor(0.3)}
    guide = wrapped(kind(three_supports, init_loc_fn=lambda site: values[site["name"]].clone()))
    guide()
    torch.testing.assert_close(guide.median(), values)


@kinds
@pytest.mark.parametrize("scale", [1e-1, 1e-4])
def test_initial_scales_are_those_asked_for(kind, scale):
    guide = wrapped(kind(units, init_loc_fn=pp.init_to_fan_in, init_scale=scale), permute=False)
    draws = torch.stack([guide()["w"] for _ in range(200)])
    assert 0.5 * scale < draws.std(0).square().mean().sqrt() < 2 * scale


@kinds
@pytest.mark.parametrize("loss", [Trace_ELBO, pp.TraceSymmetrized_ELBO])
def test_models_with_parameters_of_their_own(kind, loss):
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(1.0))
            self.scale = PyroParam(torch.tensor(0.1), constraints.positive)

        def forward(self):
            pyro.sample("w", dist.Normal(self.loc, self.scale).expand([UNITS]).to_event(1))
            pyro.sample("y", dist.Normal(2.0, 0.1))

    model = Model()
    guide = wrapped(kind(model, init_loc_fn=init_to_median))
    steps(model, guide, loss(), 20, lr=0.005)
    median = guide.median()
    torch.testing.assert_close(median["w"], torch.ones(UNITS), rtol=0, atol=0.3)
    torch.testing.assert_close(median["y"], torch.tensor(2.0), rtol=0, atol=0.3)
    check_model_guide_match(poutine.trace(model).get_trace(), poutine.trace(guide).get_trace())
