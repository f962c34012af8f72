"""Guides of any make are evaluated over the symmetry that is theirs, as the losses train them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import one_hidden_layer
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule

import pyro_perm as pp

PROBLEM = one_hidden_layer(3)
X, Y = PROBLEM.args


def ready(**options):
    guide = PROBLEM.base(**options)
    guide(X, Y)
    return guide


def written_out(base):
    """The same guide as a function that samples Normals."""

    def guide(x, y):
        for site in ("w1", "b1", "w2", "b2"):
            loc, scale = getattr(base.locs, site), getattr(base.scales, site)
            pyro.sample(site, dist.Normal(loc, scale).to_event(loc.dim()))

    return guide


def elbo(model, guide, **options):
    pyro.set_rng_seed(0)
    return pp.symmetrized_elbo(model, guide, X, Y, num_samples=16, progress=False, **options)


def same(one, other):
    for field in ("lower", "upper", "base", "lower_standard_error"):
        assert getattr(one, field) == pytest.approx(getattr(other, field))


def test_a_function_that_samples_normals_is_evaluated_as_the_autoguide():
    base = ready()
    symmetry = pp.find_symmetry(PROBLEM.model, X, Y)
    expected = elbo(PROBLEM.model, base, symmetry=symmetry)
    same(elbo(PROBLEM.model, written_out(base), symmetry=symmetry), expected)
    same(elbo(PROBLEM.model, written_out(base)), expected)  # Found in the model.
    pyro.set_rng_seed(0)
    information = pp.mutual_information(
        written_out(base), X, Y, num_samples=16, symmetry=symmetry, progress=False
    )
    assert information.lower == pytest.approx(expected.mutual_information.lower)
    overlap = pp.unit_overlap(written_out(base), X, Y, symmetry=symmetry)["P0"]
    torch.testing.assert_close(overlap.sum(0), torch.ones(3))


def coded(x):
    """Weights and local codes, whose dimensions permute with the weights."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("x", dist.Normal(torch.tanh(z) @ w, 0.3).to_event(1), obs=x)


class Coder(PyroModule):
    def __init__(self, symmetrize):
        super().__init__()
        weights = AutoNormal(poutine.block(coded, expose=["w"]), init_loc_fn=pp.init_to_fan_in)
        self.weights = symmetrize(weights)
        self.encoder = torch.nn.Linear(4, 3)

    def forward(self, x):
        self.weights(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def test_guides_with_an_encoder_are_evaluated():
    x = torch.randn(6, 4)
    guide = Coder(lambda weights: weights)
    result = pp.symmetrized_elbo(coded, guide, x, num_samples=8, progress=False)
    assert result.log_order == pytest.approx(math.log(6))
    assert 0 < result.mutual_information.lower <= result.log_order + 1e-9


def test_parts_that_are_symmetrized_bring_their_symmetry():
    base = ready()
    symmetry = PROBLEM.symmetry()
    part = pp.AutoSymmetrized(base, symmetry, permute=False)
    part(X, Y)
    expected = elbo(PROBLEM.model, part)
    for guide in (lambda x, y: part(x, y), poutine.block(part, hide=["nothing"])):
        same(elbo(PROBLEM.model, guide), expected)
        information = pp.mutual_information(guide, X, Y, num_samples=4, progress=False)
        assert information.log_order == pytest.approx(math.log(6))
    other = pp.PermutationSymmetry({"hidden": {"w1": 0, "b1": 0}})
    with pytest.raises(ValueError, match="the guide brings its own symmetry"):
        elbo(PROBLEM.model, guide, symmetry=other)


def two_networks(x, y):
    f = 0.0
    for k in "ab":
        w1 = pyro.sample(f"{k}1", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        w2 = pyro.sample(f"{k}2", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        f = f + (torch.tanh(x @ w1.mT) @ w2.mT).squeeze(-1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("permute", [True, False])
def test_several_symmetrized_parts_add_up(permute):
    guide = AutoGuideList(two_networks)
    for k in "ab":
        model = poutine.block(two_networks, expose=[f"{k}1", f"{k}2"])
        part = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.01)
        guide.append(pp.AutoSymmetrized(part, permute=permute))
    guide(X, Y)
    result = elbo(two_networks, guide)
    assert result.log_order == pytest.approx(2 * math.log(6))
    # Units far apart gain everything.
    assert result.mutual_information.lower == pytest.approx(2 * math.log(6))
    with torch.no_grad():
        losses = torch.tensor([Trace_ELBO().loss(two_networks, guide, X, Y) for _ in range(200)])
    assert (
        abs(result.lower + losses.mean()) < 5 * losses.std() / 14 + 5 * result.base_standard_error
    )


def test_guides_whose_sites_depend_on_each_other_are_refused():
    def guide(x, y):
        w1 = pyro.sample("w1", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        pyro.sample("b1", dist.Normal(w1[:, 0], 1.0).to_event(1))
        pyro.sample("w2", dist.Normal(torch.zeros(1, 3), 1.0).to_event(2))
        pyro.sample("b2", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pytest.raises(TypeError, match="draws site 'b1' from what it drew at site 'w1'"):
        elbo(PROBLEM.model, guide, symmetry=PROBLEM.symmetry())


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_information_is_scaled_as_the_guide_is(scale):
    """A loss per observation: the interval is that of the scaled objective."""
    base = ready(init_scale=0.01)
    symmetrized = pp.AutoSymmetrized(base, PROBLEM.symmetry(), permute=False)
    symmetrized(X, Y)
    scaled = [poutine.scale(program, scale=scale) for program in (PROBLEM.model, symmetrized, base)]
    expected = elbo(PROBLEM.model, symmetrized)
    for guide, options in ((scaled[1], {}), (scaled[2], {"symmetry": PROBLEM.symmetry()})):
        result = elbo(scaled[0], guide, **options)
        assert result.weight == scale
        for field in ("base", "lower", "upper", "lower_standard_error"):
            assert getattr(result, field) == pytest.approx(scale * getattr(expected, field))
        assert result.mutual_information.lower == expected.mutual_information.lower
        assert result.interval == pytest.approx((result.lower, result.upper))


def test_masked_guides_gain_nothing():
    base = ready(init_scale=0.01)
    masked = poutine.mask(base, mask=False)
    result = elbo(PROBLEM.model, masked, symmetry=PROBLEM.symmetry())
    assert result.weight == 0.0
    assert result.lower == result.base == result.upper


def test_sites_of_one_symmetry_that_are_scaled_differently_are_refused():
    base = ready()

    def guide(x, y):
        with poutine.scale(scale=2.0), poutine.block(expose=["w1", "w1_unconstrained"]):
            base(x, y)
        with poutine.block(hide=["w1", "w1_unconstrained"]):
            base(x, y)

    with pytest.raises(ValueError, match="weighed alike"):
        elbo(PROBLEM.model, guide, symmetry=PROBLEM.symmetry())


def test_jointly_drawn_sites_keep_their_estimators():
    locs = init_to_value(
        values={"w2": torch.tensor([[-3.0, 0.0, 3.0]])}, fallback=pp.init_to_fan_in
    )
    base = AutoMultivariateNormal(PROBLEM.model, init_loc_fn=locs, init_scale=0.05)
    result = elbo(PROBLEM.model, base, symmetry=PROBLEM.symmetry())
    assert result.mutual_information.lower == pytest.approx(math.log(6), abs=0.1)
