"""Units along a plate permute whole events, whatever the support of these is."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import traced_log_ratio
from marks import slow
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from torch.distributions import biject_to

import pyro_perm as pp
from pyro_perm.density.base_guides import read_density

UNITS = 3

# Priors without data, of which no check can tell whether sites are tied.
pytestmark = pytest.mark.filterwarnings("ignore:group 'units' leaves the log joint as it is")


class Ordered(dist.MultivariateNormal):
    support = dist.constraints.ordered_vector

    def rsample(self, sample_shape=()):
        return super().rsample(torch.Size(sample_shape)).sort(-1).values


FAMILIES = {
    "cholesky factors": lambda: dist.LKJCholesky(3, 2.0),
    "probability vectors": lambda: dist.Dirichlet(torch.ones(4)),
    "ordered vectors": lambda: Ordered(torch.zeros(3), torch.eye(3)),
    "positive numbers": lambda: dist.LogNormal(0.0, 1.0).expand([2]).to_event(1),
    "unit intervals": lambda: dist.Beta(2.0, 2.0),
}
SYMMETRY = {"cholesky factors": -3, "positive numbers": -2, "unit intervals": -1}


def model(name):
    family = FAMILIES[name]

    def model():
        with pyro.plate("units", UNITS):
            pyro.sample("c", family())
            pyro.sample("m", dist.Normal(0.0, 1.0))

    return model


def started(name, estimator=None, **options):
    program = model(name)
    symmetry = pp.PermutationSymmetry({"units": {"c": SYMMETRY.get(name, -2), "m": -1}})
    base = AutoNormal(program, init_loc_fn=init_to_sample, init_scale=0.7)
    guide = pp.AutoSymmetrized(base, symmetry, estimator=estimator or pp.Exact(), **options)
    guide()
    return guide


def by_hand(guide, trace):
    """``log 1/|G| sum_g q(g w)``, from whole events in unconstrained space."""
    terms = []
    for order in itertools.permutations(range(UNITS)):
        total = 0.0
        for site in ("c", "m"):
            node = trace.nodes[f"{site}_unconstrained"]
            normal = dist.Normal(*guide.base._get_loc_and_scale(site))
            total = (
                total
                + normal.log_prob(
                    node["value"][..., list(order), :]
                    if node["value"].dim() > 1
                    else node["value"][list(order)]
                ).sum()
            )
        terms.append(total)
    return torch.stack(terms).logsumexp(0) - guide.symmetry.log_order


@pytest.mark.parametrize("estimator", [pp.Exact(), pp.Bethe()], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_log_q_is_the_sum_over_permutations_of_whole_events(name, estimator):
    guide = started(name, estimator)
    for _ in range(3):
        trace = poutine.trace(guide).get_trace()
        log_q = sum(
            trace.nodes[f"{site}_unconstrained"]["fn"]
            .log_prob(trace.nodes[f"{site}_unconstrained"]["value"])
            .sum()
            for site in ("c", "m")
        )
        torch.testing.assert_close(traced_log_ratio(trace), by_hand(guide, trace) - log_q)


@pytest.mark.parametrize("name", FAMILIES)
def test_particles_have_the_density_that_each_has_alone(name):
    guide = started(name)
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(guide).get_trace()
    found = traced_log_ratio(trace)
    assert found.shape == (4, 1)
    density = read_density(trace.nodes, guide.symmetry.group)
    for particle in range(4):
        values = {site: value[particle] for site, value in density.values.items()}
        alone = pp.Exact().log_ratio(
            type(density)(density.symmetry, values, density.locs, density.scales, torch.Size())
        )
        torch.testing.assert_close(found[particle, 0], alone)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_stay_in_the_support_and_carry_the_jacobian(name):
    guide = started(name)
    trace = poutine.trace(guide).get_trace()
    value, support = trace.nodes["c"]["value"], FAMILIES[name]().support
    assert support.check(value).all()
    transform = biject_to(support)
    unconstrained = trace.nodes["c_unconstrained"]["value"]
    jacobian = -transform.log_abs_det_jacobian(unconstrained, transform(unconstrained)).sum()
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["c"]["log_prob_sum"], jacobian)


def mixture(x):
    """A Gaussian mixture whose components have correlations of their own."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(UNITS)))
    with pyro.plate("components", UNITS):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))
        factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
    component = dist.MultivariateNormal(mean, scale_tril=scale[..., None] * factor)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), component), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [pp.TraceSymmetrized_ELBO, *slow(Trace_ELBO)])
def test_a_mixture_with_correlations_is_found_and_trains(loss):
    x = torch.randn(40, 2) + 3.0 * torch.randint(3, (40, 1))
    guide = pp.AutoSymmetrized(AutoNormal(mixture, init_loc_fn=init_to_sample))
    svi = SVI(mixture, guide, pyro.optim.Adam({"lr": 0.05}), loss())
    losses = [svi.step(x) for _ in range(60)]
    (sites,) = guide.symmetry.spec.values()
    assert sites.keys() == {"weights", "mean", "scale", "factor"}
    assert sum(losses[-10:]) < sum(losses[:10])
    assert guide.symmetry == pp.PermutationSymmetry.from_json(guide.symmetry.to_json())


def test_groups_within_an_event_that_mixes_its_entries_are_refused():
    def within():
        pyro.sample("c", dist.LKJCholesky(3, 1.0))

    guide = pp.AutoSymmetrized(AutoNormal(within), pp.PermutationSymmetry({"rows": {"c": (0, 1)}}))
    with pytest.raises((TypeError, ValueError), match="'rows'"):
        guide()
