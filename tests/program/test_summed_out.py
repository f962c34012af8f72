"""Discrete sites are summed out: the log joint is that of a sum over all of their values."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate

from pyro_perm.program.call import Call
from pyro_perm.program.full_data import survey
from pyro_perm.program.sites import SiteKind
from pyro_perm.program.summed_out import enumerate_sites, traced_terms

WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
X = torch.tensor([-1.0, 0.2, 0.5, 2.0], dtype=torch.float64)


def locations():
    return pyro.sample("mu", dist.Normal(0.0, 2.0).expand([3]).to_event(1))


def mixture():
    mu = locations()
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(mu[z], 0.5), obs=X)


def one_component_for_all():
    mu = locations()
    z = pyro.sample("z", dist.Categorical(WEIGHTS))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Normal(mu[z], 0.5), obs=X)


def two_observations_of_a_component():
    mu = locations()
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(mu[z], 0.5), obs=X)
        pyro.sample("v", dist.Bernoulli(WEIGHTS[z]), obs=(X > 0.3).double())


def annotators():
    """Dawid-Skene: a class for each item, seen by several annotators."""
    mu = locations()
    items, raters = pyro.plate("items", 4, dim=-1), pyro.plate("raters", 2, dim=-2)
    with items:
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
    with raters, items:
        pyro.sample("x", dist.Normal(mu[z], 0.5), obs=torch.stack([X, -X]))


def markov_chain():
    mu = locations()
    transition = 0.1 + 0.7 * torch.eye(3)
    z = None
    for t in pyro.markov(range(4)):
        z = pyro.sample(f"z{t}", dist.Categorical(WEIGHTS if z is None else transition[z]))
        pyro.sample(f"x{t}", dist.Normal(mu[z], 0.5), obs=X[t])


def masked_and_scaled():
    mu = locations()
    with pyro.plate("data", 4), poutine.scale(scale=2.5), poutine.mask(mask=X > 0):
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(mu[z], 0.5), obs=X)


def latent_below():
    """The prior of a latent site depends on what is summed out."""
    s = pyro.sample("s", dist.Bernoulli(0.3))
    mu = pyro.sample("mu", dist.Normal(3.0 * s, 2.0))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Normal(mu, 0.5), obs=X)


def factor_of_the_component():
    mu = locations()
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
        pyro.factor("censored", dist.Normal(mu[z], 0.5).cdf(X).log())


def one_value():
    mu = locations()
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(torch.ones(1)))
        pyro.sample("x", dist.Normal(mu[z], 0.5), obs=X)


def two_precisions():
    mu = locations()
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(WEIGHTS.float()))
        pyro.sample("x", dist.Normal(mu[z], 0.5), obs=X)


def nothing_hangs_on_it():
    locations()
    with pyro.plate("data", 4):
        pyro.sample("z", dist.Categorical(WEIGHTS))


MODELS = [
    mixture,
    one_component_for_all,
    two_observations_of_a_component,
    annotators,
    markov_chain,
    latent_below,
    factor_of_the_component,
    one_value,
    two_precisions,
    nothing_hangs_on_it,
]


def assignments(trace, names):
    """All values of some discrete sites together."""
    entries = [
        (name, index)
        for name in names
        for index in itertools.product(*map(range, trace.nodes[name]["value"].shape))
    ]
    supports = [trace.nodes[name]["fn"].enumerate_support(expand=False) for name, _ in entries]
    for choice in itertools.product(*(support.flatten() for support in supports)):
        values = {name: torch.zeros_like(trace.nodes[name]["value"]) for name in names}
        for (name, index), value in zip(entries, choice, strict=True):
            values[name][index] = value
        yield values


def summed_by_hand(model, values, names):
    """``log sum_z p(x, z, w)``, one run of the model a term."""
    trace = poutine.trace(model).get_trace()
    joints = [
        poutine.trace(poutine.condition(model, {**values, **each})).get_trace().log_prob_sum()
        for each in assignments(trace, names)
    ]
    return torch.stack(joints).logsumexp(0)


def evaluated(model):
    """The model, values of its continuous sites, names of its discrete ones, and its terms."""
    model = config_enumerate(model)
    full = survey(Call(model))
    latent = full.names(SiteKind.LATENT)
    discrete = [name for name in latent if full.sites[name].can_be_summed_out]
    values = {name: full.sites[name].value for name in latent if name not in discrete}
    return full, values, discrete, full.evaluate(values, discrete).terms


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_joint_is_a_sum_over_all_values(model):
    full, values, discrete, terms = evaluated(model)
    assert discrete
    expected = summed_by_hand(model, values, discrete)
    torch.testing.assert_close(full.log_joint(terms), expected)
    assert not {name for term in terms for name in term.sites} & set(discrete)


def test_scales_stand_outside_of_the_sum_and_masks_inside():
    full, values, _, terms = evaluated(masked_and_scaled)
    (term,) = (term for term in terms if term.summed_out)
    density = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), dist.Normal(values["mu"], 0.5))
    expected = torch.where(X > 0, density.log_prob(X), 0.0)
    torch.testing.assert_close(term.log_prob, expected)
    prior = dist.Normal(0.0, 2.0).log_prob(values["mu"]).sum()
    torch.testing.assert_close(full.log_joint(terms), prior + 2.5 * expected.sum())


@pytest.mark.parametrize(
    ("model", "sites", "plates"),
    [
        (mixture, ("x",), {-1: "data"}),
        (one_component_for_all, ("x",), {}),
        (two_observations_of_a_component, ("x", "v"), {-1: "data"}),
        (annotators, ("x",), {-1: "items"}),
        (markov_chain, ("x0", "x1", "x2", "x3"), {}),
        (latent_below, ("mu",), {}),
        (factor_of_the_component, ("censored",), {-1: "data"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_terms_keep_the_plates_that_the_sum_does_not_cross(model, sites, plates):
    *_, terms = evaluated(model)
    (term,) = (term for term in terms if term.summed_out)
    assert (term.sites, term.plates) == (sites, plates)
    assert term.log_prob.shape == ((4,) if plates else ())


def test_what_has_a_value_is_not_summed_out():
    model = config_enumerate(mixture)
    full = survey(Call(model))
    values = {name: full.sites[name].value for name in ("mu", "z")}
    terms = full.evaluate(values).terms
    expected = poutine.trace(poutine.condition(mixture, values)).get_trace().log_prob_sum()
    torch.testing.assert_close(full.log_joint(terms), expected)


def test_subsampled_mixtures_are_summed_out_batch_by_batch():
    def model(size):
        mu = locations()
        with pyro.plate("data", 4, subsample_size=size) as i:
            z = pyro.sample("z", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu[z], 0.5), obs=X[i])

    for size in (1, 3):
        full = survey(Call(model, (size,)))
        values = {"mu": full.sites["mu"].value}
        terms = full.evaluate(values, ["z"]).terms
        expected = summed_by_hand(mixture, values, ["z"])
        torch.testing.assert_close(full.log_joint(terms), expected)
        assert terms[-1].log_prob.shape == (4,)


def test_sums_across_subsamples_are_refused():
    def model():
        z = pyro.sample("z", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        with pyro.plate("data", 4, subsample_size=2) as i:
            pyro.sample("x", dist.Normal(z.double(), 0.5), obs=X[i])

    full = survey(Call(model))
    with pytest.raises(ValueError, match="sites 'z', 'x' are summed out together, but handlers or"):
        full.evaluate({}, ["z"])


def test_sums_over_crossed_plates_are_refused():
    def model():
        rows, columns = pyro.plate("rows", 2, dim=-1), pyro.plate("columns", 3, dim=-2)
        with rows:
            a = pyro.sample("a", dist.Bernoulli(0.4))
        with columns:
            b = pyro.sample("b", dist.Bernoulli(0.4))
        with rows, columns:
            pyro.sample("x", dist.Normal(a + b, 0.5), obs=torch.zeros(3, 2))

    full = survey(Call(config_enumerate(model)))
    with pytest.raises(ValueError, match=r"cannot sum out sites \['a', 'b', 'x'\]: .* plates"):
        full.evaluate({}, ["a", "b"])


def test_traces_can_be_summed_out_with_particles():
    """Every particle has a sum of its own."""

    def model():
        with pyro.plate("particles", 5, dim=-2):
            mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
            with pyro.plate("data", 4, dim=-1):
                z = pyro.sample("z", dist.Bernoulli(0.3))
                pyro.sample("x", dist.Normal(mu + z, 0.5), obs=X)

    enumerated = config_enumerate(model)
    trace = poutine.trace(enumerate_sites(enumerated, ["z"], 2)).get_trace()
    *_, term = traced_terms(trace)
    mu = trace.nodes["mu"]["value"]
    parts = [
        dist.Normal(mu + z, 0.5).log_prob(X) + dist.Bernoulli(0.3).log_prob(torch.tensor(z))
        for z in (0.0, 1.0)
    ]
    torch.testing.assert_close(term.log_prob, torch.logaddexp(*parts))
