"""Handlers that scale or mask a guide weigh log q^G as they weigh log q, by both routes."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import traced_log_ratio
from marks import slow
from problems import normal, one_hidden_layer
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuide, AutoGuideList, AutoNormal

import pyro_perm as pp

SPEC = {"units": {"w": 0, "v": 0}}
# Units so far apart that every draw tells its permutation.
LOCS = {"w": torch.arange(3.0, dtype=torch.float64), "v": torch.zeros(3, dtype=torch.float64)}
INFORMATION = math.log(math.factorial(3))

pytestmark = pytest.mark.filterwarnings("ignore:group 'units' leaves the log joint as it is")


def model():
    normal("w", 3), normal("v", 3)


class Inside(AutoGuide):
    """Handlers stand inside of the guide, around all sites or around one."""

    def __init__(self, model, *, all_sites, only_v=None):
        super().__init__(model)
        self.all_sites, self.only_v = all_sites, only_v

    def forward(self):
        if self.prototype_trace is None:
            self._setup_prototype()
        with self.all_sites:
            pyro.sample("w", dist.Normal(LOCS["w"], 0.01).to_event(1))
            if self.only_v is None:
                pyro.sample("v", dist.Normal(LOCS["v"], 0.01).to_event(1))
            else:
                with self.only_v:
                    pyro.sample("v", dist.Normal(LOCS["v"], 0.01).to_event(1))


def gain(base, loss=None, *, by_loss, around=lambda program: program):
    """What symmetrization takes off the loss, of draws that are common."""
    values = []
    for estimator in (pp.InfoNCE(1), pp.Exact()):
        symmetry = pp.PermutationSymmetry(SPEC)
        guide = base()
        if by_loss:
            loss = pp.TraceSymmetrized_ELBO(symmetry=symmetry, estimator=estimator)
        else:
            guide = pp.AutoSymmetrized(guide, symmetry, estimator=estimator, permute=False)
        pyro.set_rng_seed(0)
        values.append(float(loss.loss(around(model), around(guide))))
    return values[0] - values[1]


ROUTES = [
    (True, None),
    (False, Trace_ELBO()),
    (False, TraceMeanField_ELBO()),
    (False, TraceGraph_ELBO()),
    (False, TraceEnum_ELBO(strict_enumeration_warning=False, max_plate_nesting=1)),
    (False, pp.TraceSymmetrized_ELBO()),
]
ROUTE_IDS = ["loss", *(type(loss).__name__ for _, loss in ROUTES[1:])]
WEIGHTS = {
    "scale": (poutine.scale, {"scale": 0.1}, 0.1),
    "tensor scale": (poutine.scale, {"scale": torch.tensor(0.1, dtype=torch.float64)}, 0.1),
    "mask off": (poutine.mask, {"mask": False}, 0.0),
    "mask on": (poutine.mask, {"mask": torch.tensor(True)}, 1.0),
    "tensor mask off": (poutine.mask, {"mask": torch.tensor(False)}, 0.0),
}


@pytest.mark.parametrize(("by_loss", "loss"), ROUTES, ids=ROUTE_IDS)
@pytest.mark.parametrize(
    "weight", ["scale", "mask off", "mask on", *slow("tensor scale", "tensor mask off")]
)
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
def test_the_gain_is_weighed_as_the_guide_is(by_loss, loss, weight, inside):
    handler, options, factor = WEIGHTS[weight]
    if inside:
        found = gain(lambda: Inside(model, all_sites=handler(**options)), loss, by_loss=by_loss)
    else:
        found = gain(
            lambda: Inside(model, all_sites=poutine.scale(scale=1.0)),
            loss,
            by_loss=by_loss,
            around=lambda program: handler(program, **options),
        )
    assert found == pytest.approx(factor * INFORMATION, abs=1e-9)


@pytest.mark.parametrize("by_loss", [True, False])
def test_handlers_multiply(by_loss):
    found = gain(
        lambda: Inside(model, all_sites=poutine.scale(scale=0.5)),
        Trace_ELBO(),
        by_loss=by_loss,
        around=lambda program: poutine.scale(program, scale=0.3),
    )
    assert found == pytest.approx(0.15 * INFORMATION)


def test_each_particle_may_have_a_scale():
    base = Inside(model, all_sites=poutine.scale(scale=torch.tensor([1.0, 0.5, 0.1])))
    guide = pp.AutoSymmetrized(base, pp.PermutationSymmetry(SPEC), permute=False)
    with pyro.plate("particles", 3):
        trace = poutine.trace(guide).get_trace()
    assert traced_log_ratio(trace).tolist() == pytest.approx([-INFORMATION] * 3)
    trace.compute_log_prob()
    (site,) = (name for name in trace.nodes if name.startswith("log_ratio"))
    expected = [-INFORMATION, -0.5 * INFORMATION, -0.1 * INFORMATION]
    assert trace.nodes[site]["log_prob"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("by_loss", [True, False])
@pytest.mark.parametrize(
    ("only_v", "message"),
    [
        (poutine.scale(scale=0.5), r"site 'w' has scale 1.0, but its site 'v' has scale 0.5\b"),
        (poutine.mask(mask=torch.tensor(False)), r"'w' has mask None, but .* 'v' has mask False"),
        (poutine.mask(mask=False), r"'w' has mask None, but .* 'v' has mask False"),
    ],
)
def test_symmetric_sites_that_are_weighed_differently_are_refused(by_loss, only_v, message):
    def base():
        return Inside(model, all_sites=poutine.scale(scale=1.0), only_v=only_v)

    with pytest.raises(ValueError, match=rf"{message}(.|\n)*all sites of a symmetry"):
        gain(base, Trace_ELBO(), by_loss=by_loss)


@pytest.mark.parametrize("by_loss", [True, False])
def test_units_that_are_weighed_differently_are_refused(by_loss):
    def in_plate():
        with pyro.plate("units", 3):
            pyro.sample("w", dist.Normal(0.0, 1.0))
        normal("v", 3)

    class Units(AutoGuide):
        def forward(self):
            if self.prototype_trace is None:
                self._setup_prototype()
            with poutine.scale(scale=torch.tensor([1.0, 2.0, 3.0])), pyro.plate("units", 3):
                pyro.sample("w", dist.Normal(LOCS["w"], 0.01))

    symmetry, guide = pp.PermutationSymmetry({"units": {"w": -1}}), Units(in_plate)
    loss = Trace_ELBO()
    if by_loss:
        loss = pp.TraceSymmetrized_ELBO(symmetry=symmetry)
    else:
        guide = pp.AutoSymmetrized(guide, symmetry)
    with pytest.raises(ValueError, match=r"site 'w(_unc\w+)?' has a scale of shape \(3,\)"):
        loss.loss(poutine.block(in_plate, hide=["v"]), guide)


def test_parts_may_be_scaled_each_by_itself():
    def two(scale):
        for part in "ab":
            with poutine.scale(scale=scale if part == "b" else 1.0):
                pyro.sample(part, dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    parts = AutoGuideList(two)
    for part in "ab":
        base = AutoNormal(
            poutine.block(two, expose=[part]),
            init_loc_fn=lambda site: LOCS["w"].clone(),
            init_scale=0.01,
        )
        symmetry = pp.PermutationSymmetry({"units": {part: 0}})
        parts.append(pp.AutoSymmetrized(base, symmetry))
    trace = poutine.trace(parts).get_trace(0.1)
    trace.compute_log_prob()
    gains = [-n["log_prob_sum"].item() for k, n in trace.nodes.items() if k.startswith("log_ratio")]
    assert gains == pytest.approx([INFORMATION, INFORMATION])


def test_annealing_the_divergence_of_a_network():
    """``poutine.scale`` around a step, as annealed training has it."""
    problem = one_hidden_layer()
    guide = problem.guide(pp.Exact())
    guide(*problem.args)
    loss = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry(), estimator=pp.Exact())
    for each, chosen in ((loss, guide.base), (pp.TraceSymmetrized_ELBO(), guide)):
        values = []
        for scale in (1.0, 0.2):
            pyro.set_rng_seed(1)
            with poutine.scale(scale=scale):
                values.append(each.loss(problem.model, chosen, *problem.args))
        assert values[1] == pytest.approx(0.2 * values[0])
