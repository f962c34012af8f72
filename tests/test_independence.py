"""Guides whose sites depend on symmetric ones are refused by name; all others are left in peace."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import slow_where
from problems import PROBLEMS, normal, one_hidden_layer
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuide, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from torch import nn

import pyro_perm as pp

UNITS = 4
SPEC = {"units": {"w": 0, "v": 0}}
START = torch.linspace(-0.1, 0.1, UNITS, dtype=torch.float64)

pytestmark = pytest.mark.filterwarnings("ignore:group 'units' leaves the log joint as it is")


def model():
    normal("w", UNITS), normal("v", UNITS)
    pyro.sample("z", dist.Normal(0.0, 1.0))


def gaussian(name, loc, scale=0.5):
    return pyro.sample(name, dist.Normal(loc, scale).to_event(1))


def scalar(name, loc):
    return pyro.sample(name, dist.Normal(loc, 0.5))


class Guide(AutoGuide):
    """One of the functions below as a guide; its parameter starts at zero."""

    def __init__(self, draw):
        super().__init__(model)
        self.draw = draw
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self):
        if self.prototype_trace is None:
            self._setup_prototype()
        self.draw(self)


def by_value(self):
    w = gaussian("w", START)
    gaussian("v", 0.9 * w)
    scalar("z", 0.0)


def by_scale(self):
    w = gaussian("w", START)
    gaussian("v", START, 0.1 + w.square())
    scalar("z", 0.0)


def detached(self):
    w = gaussian("w", START)
    gaussian("v", 0.1 * w.detach())
    scalar("z", 0.0)


def outside_of_torch(self):
    w = gaussian("w", START)
    gaussian("v", torch.tensor(w.detach().numpy() * 0.1))
    scalar("z", 0.0)


def by_branch(self):
    w = gaussian("w", START)
    gaussian("v", START if w.sum() < 1 else -START)
    scalar("z", 0.0)


def learned_from_zero(self):
    w = gaussian("w", START)
    gaussian("v", self.zero * w)
    scalar("z", 0.0)


def in_unconstrained_space(self):
    unconstrained = pyro.sample(
        "w_unconstrained", dist.Normal(START, 0.5).to_event(1), infer={"is_auxiliary": True}
    )
    pyro.sample("w", dist.Delta(unconstrained, event_dim=1))
    gaussian("v", unconstrained.tanh())
    scalar("z", 0.0)


DEPENDENT_IN_TORCH = [by_value, by_scale, detached, learned_from_zero, in_unconstrained_space]
DEPENDENT = [*DEPENDENT_IN_TORCH, outside_of_torch, by_branch]


def other_site(self):
    w = gaussian("w", START)
    gaussian("v", START)
    scalar("z", w.sum())


def other_site_by_a_point(self):
    w = gaussian("w", START)
    gaussian("v", START)
    pyro.sample("z", dist.Delta(w.mean()))


def symmetrized(draw, loss, by_loss, estimator=None):
    symmetry, guide = pp.PermutationSymmetry(SPEC), Guide(draw)
    if by_loss:
        loss = pp.TraceSymmetrized_ELBO(symmetry=symmetry, estimator=estimator, **loss)
    else:
        guide = pp.AutoSymmetrized(guide, symmetry, estimator=estimator, permute=False)
        loss = Trace_ELBO(**loss)
    return loss.loss(model, guide)


VECTORIZED = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 0}


@pytest.mark.parametrize("by_loss", [True, False], ids=["loss", "guide"])
@pytest.mark.parametrize(
    ("draw", "particles"),
    [(draw, {}) for draw in DEPENDENT] + [(draw, VECTORIZED) for draw in DEPENDENT_IN_TORCH],
)
def test_a_symmetric_site_that_depends_on_another_is_refused(draw, particles, by_loss):
    with pytest.raises(TypeError, match=r"site 'v' from what it drew at site 'w'.*AutoMultivar"):
        symmetrized(draw, particles, by_loss)


@pytest.mark.parametrize("by_loss", [True, False], ids=["loss", "guide"])
@pytest.mark.parametrize("draw", [other_site, other_site_by_a_point])
def test_another_site_that_depends_on_a_symmetric_one_is_refused(draw, by_loss):
    with pytest.raises(TypeError, match="site 'z' from what it drew at site 'w'"):
        symmetrized(draw, {}, by_loss)


@pytest.mark.parametrize("by_loss", [True, False], ids=["loss", "guide"])
def test_symmetric_sites_may_depend_on_others(by_loss):
    """``q^G(w, z) = q(z) q^G(w | z)``: units far apart gain all of log n!."""

    def draw(self):
        z = scalar("z", 0.3)
        gaussian("w", 9.0 * torch.arange(UNITS) + z.unsqueeze(-1), 0.1)
        gaussian("v", START)

    losses = []
    for estimator in (pp.InfoNCE(1), pp.Exact()):
        pyro.set_rng_seed(1)
        losses.append(symmetrized(draw, {}, by_loss, estimator=estimator))
    assert losses[0] - losses[1] == pytest.approx(math.lgamma(UNITS + 1))


def each_unit_in_its_own_way(self):
    unconstrained = pyro.sample(
        "w_unconstrained", dist.Normal(START, 0.5).to_event(1), infer={"is_auxiliary": True}
    )
    pyro.sample("w", dist.Delta((1.0 + torch.arange(UNITS)) * unconstrained, event_dim=1))
    gaussian("v", START)
    scalar("z", 0.0)


def mixed(self):
    unconstrained = pyro.sample(
        "w_unconstrained", dist.Normal(START, 0.5).to_event(1), infer={"is_auxiliary": True}
    )
    neighbours = unconstrained + 0.5 * unconstrained.roll(1)  # moves with a cycle, not with a swap
    pyro.sample("w", dist.Delta(neighbours, event_dim=1))
    gaussian("v", START)
    scalar("z", 0.0)


@pytest.mark.parametrize("by_loss", [True, False], ids=["loss", "guide"])
@pytest.mark.parametrize("draw", [each_unit_in_its_own_way, mixed])
def test_units_that_are_transformed_differently_are_refused(draw, by_loss):
    with pytest.raises(TypeError, match=r"site 'w' from what it drew at 'w_unc.*in its own way"):
        symmetrized(draw, {}, by_loss)


# Constrained sites, and subsampled ones, are no parts of a vector.
BASES = [(AutoNormal, problem) for problem in PROBLEMS] + [
    (kind, problem)
    for kind in (AutoDiagonalNormal, AutoMultivariateNormal)
    for problem in PROBLEMS
    if problem.name not in ("hierarchical", "local_latents")
]


# In the quick run one problem of each kind.
QUICK = (BASES[0], BASES[len(PROBLEMS)], BASES[-1])


@pytest.mark.parametrize(("kind", "problem"), slow_where(lambda each: each not in QUICK, BASES))
def test_guides_of_pyro_are_left_in_peace(problem, kind):
    base = kind(problem.model, init_loc_fn=pp.init_to_fan_in)
    base.create_plates = problem.create_plates
    guide = pp.AutoSymmetrized(base, problem.symmetry(), estimator=pp.ImportanceSampled(2))
    assert guide(*problem.args).keys() == guide.median().keys()


class Encoder(PyroModule):
    """A guide of local codes that is a function of the data, beside weights drawn by another."""

    def __init__(self, model):
        super().__init__()
        self.weights = AutoNormal(
            poutine.block(model, expose=["w1", "w2"]), init_loc_fn=pp.init_to_fan_in
        )
        self.encoder = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.weights(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def autoencoder(x):
    w1, w2 = normal("w1", 3, 4), normal("w2", 4, 5)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("x", dist.Normal(torch.tanh(z @ w1) @ w2, 0.3).to_event(1), obs=x)


def test_a_guide_is_asked_once_and_left_as_it_was():
    guide, x = Encoder(autoencoder), torch.randn(7, 5)
    symmetry = pp.PermutationSymmetry({"hidden": {"w1": 1, "w2": 0}})
    loss = pp.TraceSymmetrized_ELBO(symmetry=symmetry)
    loss.loss(autoencoder, guide, x)
    assert guide.encoder[1].num_batches_tracked == 1  # of the one call that counts
    calls = guide.calls
    loss.loss(autoencoder, guide, x)
    loss.loss(autoencoder, poutine.scale(guide, scale=0.5), x)
    assert guide.calls == calls + 2


@pytest.mark.parametrize("by_loss", [True, False], ids=["loss", "guide"])
def test_random_numbers_are_those_without_the_check(by_loss):
    problem = one_hidden_layer()
    base = problem.base()
    base(*problem.args)
    if by_loss:
        guide, loss = base, pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry())
    else:
        guide, loss = pp.AutoSymmetrized(base, problem.symmetry()), Trace_ELBO()
    values = []
    for _ in range(2):
        pyro.set_rng_seed(1)
        values.append(loss.loss(problem.model, guide, *problem.args))
    assert values[0] == values[1]


def test_symmetric_sites_that_depend_on_one_without_rsample_are_refused():
    def draw(self):
        z = pyro.sample("z", NonreparameterizedNormal(0.3, 1.0))
        gaussian("w", START + z.unsqueeze(-1))
        gaussian("v", START)

    with pytest.raises(TypeError, match="'w' from what it drew at site 'z' without a reparam"):
        symmetrized(draw, {}, by_loss=False)
    symmetrized(draw, {}, by_loss=True)  # Its gradient is right: see test_gradients.py.


def test_independent_sites_without_rsample_do_no_harm():
    def draw(self):
        pyro.sample("z", NonreparameterizedNormal(0.3, 1.0))
        gaussian("w", START)
        gaussian("v", START)

    symmetrized(draw, {}, by_loss=False)
