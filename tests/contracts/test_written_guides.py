"""Guides made of parts, and guides written out: their density is the one summed over the group."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import traced_log_ratio
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_value

import pyro_perm as pp

SHAPES = {"1": (3, 2), "2": (1, 3)}
AXES = {"1": 0, "2": 1}
NETWORKS = ("a", "b")
X, Y = torch.linspace(-1, 1, 8).view(4, 2).double(), torch.linspace(0, 1, 4).double()


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def model(x, y):
    """The sum of two networks of three units each."""
    f = 0.0
    for network in NETWORKS:
        w1, w2 = (
            pyro.sample(network + k, dist.Normal(0.0, 1.0).expand(shape).to_event(2))
            for k, shape in SHAPES.items()
        )
        f = f + (torch.tanh(x @ w1.mT) @ w2.mT).squeeze(-1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def symmetry_of(*networks):
    spec = {network: {network + k: axis for k, axis in AXES.items()} for network in networks}
    return pp.PermutationSymmetry(spec)


def random_locs():
    source = torch.Generator().manual_seed(3)
    return {
        network + k: 0.5 * torch.randn(shape, generator=source).double()
        for network in NETWORKS
        for k, shape in SHAPES.items()
    }


LOCS, SCALE = random_locs(), 0.7


def log_mean_over_group(log_q, values):
    """``log 1/|G| sum_g q(g . w)`` over the permutations of both networks."""
    terms = []
    for pair in itertools.product(itertools.permutations(range(3)), repeat=len(NETWORKS)):
        moved = {
            network + k: values[network + k].index_select(axis, torch.tensor(permutation))
            for network, permutation in zip(NETWORKS, pair, strict=True)
            for k, axis in AXES.items()
        }
        terms.append(log_q(moved))
    return torch.stack(terms).logsumexp(0) - math.log(len(terms))


def log_q_of_normals(values):
    return sum(dist.Normal(LOCS[s], SCALE).log_prob(value).sum() for s, value in values.items())


def auto_normal(*sites):
    """An AutoNormal of some sites, at the parameters above."""
    some = poutine.block(model, expose=sites)
    return AutoNormal(some, init_loc_fn=init_to_value(values=LOCS), init_scale=SCALE)


def listed(*parts):
    guide = AutoGuideList(model)
    for part in parts:
        guide.append(part)
    return guide


def one_each():
    return pp.AutoSymmetrized(listed(*(auto_normal(s) for s in LOCS)), symmetry_of(*NETWORKS))


def a_list_in_a_list():
    inner = listed(auto_normal("a2"), auto_normal("b1", "b2"))
    return pp.AutoSymmetrized(listed(auto_normal("a1"), inner), symmetry_of(*NETWORKS))


def symmetrized_part(network):
    base = auto_normal(network + "1", network + "2")
    return pp.AutoSymmetrized(base, symmetry_of(network))


def symmetrized_parts():
    return listed(*map(symmetrized_part, NETWORKS))


def symmetrized_parts_in_a_list():
    return listed(symmetrized_part("a"), listed(symmetrized_part("b")))


@pytest.mark.parametrize(
    "made", [one_each, a_list_in_a_list, symmetrized_parts, symmetrized_parts_in_a_list]
)
@pytest.mark.parametrize("permute", [True, False])
def test_lists_of_guides_in_either_nesting(made, permute):
    guide = made()
    for part in guide.modules():
        if isinstance(part, pp.AutoSymmetrized):
            part.permute = permute
    guide(X, Y)
    trace = poutine.trace(guide).get_trace(X, Y)
    values = {site: trace.nodes[site]["value"] for site in LOCS}
    expected = log_mean_over_group(log_q_of_normals, values)
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=0, atol=1e-9)
    if made in (one_each, a_list_in_a_list):
        assert abs(traced_log_ratio(trace)) > 1e-3


def test_a_group_that_several_parts_draw_is_refused_in_each_of_them():
    parts = (pp.AutoSymmetrized(auto_normal(s), symmetry_of("a")) for s in ("a1", "a2"))
    with pytest.raises(ValueError, match=r"site 'a2': poutine.block hides the site"):
        listed(*parts, auto_normal("b1", "b2"))(X, Y)


class InGroups(EasyGuide):
    """Each network drawn as one vector: independent Normals, a joint Gaussian, or a chain."""

    def __init__(self, kind):
        super().__init__(model)
        self.kind = kind
        factor = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
        self.scale_tril = (0.2 * factor).tril(-1) + 0.6 * torch.eye(9)

    def gaussian(self, network):
        loc = torch.cat([LOCS[network + k].flatten() for k in SHAPES])
        if self.kind == "joint":
            return dist.MultivariateNormal(loc, scale_tril=self.scale_tril)
        return dist.Normal(loc, SCALE).to_event(1)

    def guide(self, x, y):
        before = 0.0
        for network in NETWORKS:
            group = self.group(match=f"{network}[12]")
            gaussian = self.gaussian(network)
            if self.kind == "chain" and network == "b":
                gaussian = dist.Normal(gaussian.base_dist.loc + before, 1.0).to_event(1)
            drawn, _ = group.sample(f"vector_{network}", gaussian)
            before = drawn.sum()

    def log_q(self, values):
        return sum(
            self.gaussian(n).log_prob(torch.cat([values[n + k].flatten() for k in SHAPES]))
            for n in NETWORKS
        )


def normals(x, y):
    for site, loc in LOCS.items():
        pyro.sample(site, dist.Normal(loc, SCALE).to_event(2))


def of_symmetry(guide, symmetry, log_q):
    """What the loss adds for the symmetry, and what the sum over the group adds."""

    def loss(estimator):
        elbo = pp.TraceSymmetrized_ELBO(symmetry=symmetry, estimator=estimator)
        elbo.loss(model, guide, X, Y)  # Verifies.
        pyro.set_rng_seed(5)
        return elbo.loss(model, guide, X, Y)

    found = loss(pp.Exact()) - loss(pp.InfoNCE(1))
    pyro.set_rng_seed(5)
    nodes = poutine.trace(guide).get_trace(X, Y).nodes
    values = {site: nodes[site]["value"] for site in LOCS}
    return found, (log_mean_over_group(log_q, values) - log_q(values)).item()


@pytest.mark.parametrize("kind", ["independent", "joint"])
def test_easy_guides_with_groups(kind):
    guide = InGroups(kind)
    if kind == "joint":  # Of one vector at a time: the other network's group is another one's.
        with pytest.raises(TypeError, match="jointly, but not with site"):
            of_symmetry(guide, symmetry_of(*NETWORKS), guide.log_q)
        return
    found, expected = of_symmetry(guide, symmetry_of(*NETWORKS), guide.log_q)
    assert found == pytest.approx(expected, abs=1e-9)
    assert abs(expected) > 1e-3


def test_written_normals():
    found, expected = of_symmetry(normals, symmetry_of(*NETWORKS), log_q_of_normals)
    assert found == pytest.approx(expected, abs=1e-9)
    assert abs(expected) > 1e-3


def test_groups_that_depend_on_each_other_are_refused():
    with pytest.raises(TypeError, match=r"draws site '(vector_)?b\w*' from what it drew at site"):
        of_symmetry(InGroups("chain"), symmetry_of(*NETWORKS), None)


def test_a_written_guide_is_for_the_loss():
    with pytest.raises(TypeError, match=r"of your own use TraceSymmetrized_ELBO"):
        pp.AutoSymmetrized(InGroups("independent"))


def without_a2(x, y):
    """A site of the symmetry was forgotten."""
    for name in LOCS.keys() - {"a2"}:
        pyro.sample(name, dist.Normal(LOCS[name], SCALE).to_event(2))


ROUTES = {
    "loss": lambda symmetry: pp.TraceSymmetrized_ELBO(symmetry=symmetry).loss(
        model, without_a2, X, Y
    ),
    "bounds": lambda symmetry: pp.symmetrized_elbo(
        model, without_a2, X, Y, symmetry=symmetry, num_samples=4, progress=False
    ),
    "overlap": lambda symmetry: pp.unit_overlap(without_a2, X, Y, symmetry=symmetry),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_guide_that_lacks_a_site_of_the_symmetry_is_refused(route):
    symmetry = symmetry_of(*NETWORKS)
    symmetry.verify(model, X, Y)
    with pytest.raises(ValueError, match="group 'a' permutes 'a2', which the guide does not draw"):
        ROUTES[route](symmetry)
