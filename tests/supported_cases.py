"""Guides and losses of Pyro on a network whose hidden units overlap, and what is right for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from problems import linear, normal, observe
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuide,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from summed_density import summed_guide

import pyro_perm as pp

UNITS = 3
DATA = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None], torch.zeros(8, dtype=torch.float64)
SHAPES = {"w1": (UNITS, 1), "w2": (1, UNITS)}
AXES = {"w1": 0, "w2": 1}
SCALE = 0.4


def start(site):
    """Units that are apart by about a scale."""
    return 0.3 * torch.arange(UNITS).double().cos().reshape(SHAPES[site["name"]])


def model(x, y):
    observe(linear(torch.tanh(linear(x, normal("w1", UNITS, 1))), normal("w2", 1, UNITS)), y)


@dataclass(frozen=True)
class BaseGuide:
    """A base guide, and the distributions of which it draws the parts of the weights.

    Attributes:
        make: makes a new guide.
        parts: the distributions, given the guide, where its density can be summed by hand.
    """

    make: Callable
    parts: Callable | None = None


def list_of_guides():
    guide = AutoGuideList(model)
    for site in SHAPES:
        part = poutine.block(model, expose=[site])
        guide.append(AutoNormal(part, init_loc_fn=start, init_scale=SCALE))
    return guide


def function_of_normals():
    def guide(x, y):
        for site, distribution in zip(SHAPES, parts_of_function(guide), strict=True):
            pyro.sample(site, distribution)

    return guide


def parts_of_function(_):
    locs = (pyro.param(f"{site}_loc", partial(start, {"name": site})) for site in SHAPES)
    return [dist.Normal(loc, SCALE).to_event(2) for loc in locs]


def parts_of_auto_normal(guide):
    return [dist.Normal(*guide._get_loc_and_scale(site)).to_event(2) for site in SHAPES]


def parts_of_list(guide):
    locs_and_scales = (p._get_loc_and_scale(s) for p, s in zip(guide, SHAPES, strict=True))
    return [dist.Normal(*each).to_event(2) for each in locs_and_scales]


def part_of_vector(guide):
    return [guide.get_posterior()]


class WithoutRsample(AutoGuide):
    """Draws its sites itself, without a reparametrized sample."""

    def __init__(self):
        super().__init__(model)
        self.w1, self.w2 = (torch.nn.Parameter(start({"name": site})) for site in SHAPES)

    def forward(self, x, y):
        if self.prototype_trace is None:
            self._setup_prototype(x, y)
        for site, loc in (("w1", self.w1), ("w2", self.w2)):
            pyro.sample(site, NonreparameterizedNormal(loc, SCALE).to_event(2))


def starting_here(kind, **options):
    return partial(kind, model, init_loc_fn=start, **options)


VECTORS = (AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal)
OTHERS = (
    AutoGaussian,
    AutoStructured,
    AutoNormalMessenger,
    AutoHierarchicalNormalMessenger,
    AutoDelta,
    AutoLaplaceApproximation,
)
GUIDES = {
    "AutoNormal": BaseGuide(starting_here(AutoNormal, init_scale=SCALE), parts_of_auto_normal),
    **{
        kind.__name__: BaseGuide(starting_here(kind, init_scale=SCALE), part_of_vector)
        for kind in VECTORS
    },
    **{kind.__name__: BaseGuide(starting_here(kind)) for kind in OTHERS},
    "AutoIAFNormal": BaseGuide(partial(AutoIAFNormal, model), part_of_vector),
    "AutoGuideList of AutoNormal": BaseGuide(list_of_guides, parts_of_list),
    "a function that samples Normals": BaseGuide(function_of_normals, parts_of_function),
}

JIT = {"ignore_jit_warnings": True}
ENUMERATING = {"strict_enumeration_warning": False}
LOSSES = {
    Trace_ELBO: {},
    TraceMeanField_ELBO: {},
    TraceGraph_ELBO: {},
    TraceEnum_ELBO: ENUMERATING,
    TraceTMC_ELBO: ENUMERATING,
    TraceTailAdaptive_ELBO: {},
    RenyiELBO: {},
    ReweightedWakeSleep: {"model_has_params": False},
    JitTrace_ELBO: JIT,
    JitTraceMeanField_ELBO: JIT,
    JitTraceGraph_ELBO: JIT,
    JitTraceEnum_ELBO: JIT | ENUMERATING,
    pp.TraceSymmetrized_ELBO: {},
}


def make_loss(kind, **options):
    particles = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
    return kind(**particles, **LOSSES[kind], **options)


def value_and_gradient(loss, guide):
    """Of a step with draws that are the same at every call; what compiles does so at the first."""
    parameters = dict(sorted(pyro.get_param_store().named_parameters()))
    for _ in range(2 if loss.ignore_jit_warnings else 1):
        pyro.set_rng_seed(0)
        for parameter in parameters.values():
            parameter.grad = None
        value = loss.loss_and_grads(model, guide, *DATA)
    value = sum(value) if isinstance(value, tuple) else value
    value = 0.0 if value == float("inf") else value  # Some have gradients only.
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values())
    return torch.cat([torch.as_tensor(value).reshape(1), *(g.flatten() for g in gradients)])


def summed(base, parts):
    """The guide with the density summed by hand, its parameters the base guide's."""

    def of_the_moment():
        if not isinstance(base, AutoGuide):
            return parts(base)
        with base._pyro_context:  # so that Pyro sees that parameters are used
            return parts(base)

    return summed_guide(of_the_moment, SHAPES, AXES)


def is_right(case, kind, estimator, *, by_loss=False):
    """Whether value and gradient of a loss are those of the density summed by hand.

    A loss in closed form draws no KL divergence: there what the estimator adds is compared.

    :raises TypeError, ValueError, NotImplementedError: if guide or loss are refused.
    """
    pyro.clear_param_store()
    base, symmetry = case.make(), pp.PermutationSymmetry({"hidden": AXES})

    def found(estimator):
        if by_loss:
            loss = make_loss(kind, symmetry=symmetry, estimator=estimator)
            return value_and_gradient(loss, base)
        guide = pp.AutoSymmetrized(base, symmetry, estimator=estimator, permute=False)
        return value_and_gradient(make_loss(kind), guide)

    base(*DATA)  # sets up its parameters
    if kind is not pp.TraceSymmetrized_ELBO:
        difference = found(estimator) - value_and_gradient(
            make_loss(kind), summed(base, case.parts)
        )
    else:
        plain, by_hand = (
            value_and_gradient(make_loss(Trace_ELBO), guide)
            for guide in (base, summed(base, case.parts))
        )
        difference = found(estimator) - found(pp.InfoNCE(1)) - (by_hand - plain)
    return bool((difference.abs() < 1e-8).all())
