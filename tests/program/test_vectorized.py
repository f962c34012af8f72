"""Draws that are vectorized over say what they say one by one."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import on_each
from problems import PROBLEMS, normal
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyro_perm.demo.model import Classification, Regression
from pyro_perm.posterior.export.datasets import choose_export, evaluate, guide_posterior, prior
from pyro_perm.program import vectorized
from pyro_perm.program.call import Call
from pyro_perm.program.full_data import survey
from pyro_perm.program.vectorized import DrawMapper

NUM_TOGETHER = 4
NUM = 1 + NUM_TOGETHER  # The first draw goes alone.
INDEX = {"index": torch.arange(NUM)}
ALONE, TOGETHER = DrawMapper(1, progress=False), DrawMapper(NUM_TOGETHER, progress=False)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def went_alone(monkeypatch):
    """One entry for each draw that went alone."""
    calls, alone = [], vectorized._alone

    def count(function, draws):
        calls.append(draws)
        return alone(function, draws)

    monkeypatch.setattr(vectorized, "_alone", count)
    return calls


def assert_same_densities(call, drawn):
    export = choose_export(survey(call), drawn["posterior"])
    alone, together = (evaluate(export, drawn, m) for m in (ALONE, TOGETHER))
    for group in ("log_likelihood", "sample_stats"):
        assert alone[group]
        torch.testing.assert_close(together[group], alone[group])
    for site, values in alone["posterior_predictive"].items():
        assert together["posterior_predictive"][site].shape == values.shape


def draw_from_guide(call, **options):
    guide = AutoNormal(call.program, init_scale=0.4, **options)
    return posterior(call, guide, ALONE)


def posterior(call, guide, map_draws):
    guide(*call.args)
    return guide_posterior(survey(call), survey(replace(call, program=guide)), NUM, map_draws)


@on_each(PROBLEMS)
def test_models_vectorize_and_keep_their_densities(problem, went_alone):
    call = Call(problem.model, problem.args)
    drawn = draw_from_guide(call, create_plates=problem.create_plates)
    went_alone.clear()
    assert_same_densities(call, drawn)
    assert len(went_alone) == NUM + 1


@pytest.mark.skipif(
    pyro.__version__ < "1.9.1", reason="Pyro 1.9.0 validates priors that were made before"
)
@pytest.mark.parametrize("network", [Regression, Classification])
def test_ordinary_modules_vectorize_and_keep_their_densities(network, went_alone):
    x = torch.randn(9, 3)
    y = torch.randn(9) if network is Regression else torch.arange(9) % 3
    call = Call(network(3, 4, 1 if network is Regression else 3), (x, y))
    drawn = draw_from_guide(call)
    went_alone.clear()
    assert_same_densities(call, drawn)
    assert len(went_alone) == NUM + 1


def branching(y):
    """Asks for the truth of a tensor, so goes one by one."""
    w = normal("w", 2)
    scale = 0.5 if w[0] > 0 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w.sum(), scale), obs=y)


def heavy_tailed(y):
    """vmap cannot draw from a Cauchy distribution."""
    w = normal("w", 1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Cauchy(w, 1.0), obs=y)


def binomial(y):
    """torch warns when vmap draws from a binomial distribution."""
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Binomial(5, p), obs=(4 * y).round())


def mixture(y):
    """vmap cannot sum out."""
    mu = normal("mu", 2)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu[..., 0] + z * mu[..., 1], 0.5), obs=y)


@pytest.mark.parametrize("model", [branching, heavy_tailed, binomial, mixture])
def test_other_models_go_one_by_one(model, went_alone):
    call = Call(model, (torch.rand(3),))
    drawn = posterior(call, AutoNormal(poutine.block(model, hide=["z"]), init_scale=0.4), ALONE)
    went_alone.clear()
    assert_same_densities(call, drawn)
    assert len(went_alone) == 2 * NUM


def test_draws_that_go_together_differ(went_alone):
    call = Call(PROBLEMS[0].model, PROBLEMS[0].args)
    groups = posterior(call, AutoNormal(call.program, init_scale=0.4), TOGETHER)
    groups |= prior(choose_export(survey(call), groups["posterior"]), NUM, TOGETHER)
    assert len(went_alone) == 2
    for group in ("prior", "prior_predictive", "posterior"):
        for values in groups[group].values():
            assert values.flatten().unique().numel() == values.numel()


def test_symmetrized_guides_vectorize(went_alone):
    call = Call(PROBLEMS[0].model, PROBLEMS[0].args)
    posterior(call, PROBLEMS[0].guide(), TOGETHER)
    assert len(went_alone) == 1


def test_failure_of_the_function_itself_comes_through():
    def model():
        normal("w", 1)
        if len(seen) > 1:
            raise ValueError("the model's own")
        seen.append(1)

    seen = []
    full = survey(Call(model))
    with pytest.raises(ValueError, match="the model's own"):
        TOGETHER(lambda _: {"drawn": full.draw().values}, INDEX, description="draws")


def test_progress_can_be_shown(capsys):
    full = survey(Call(normal, ("w", 1)))
    for mapper, shown in ((TOGETHER, False), (DrawMapper(1, progress=True), True)):
        mapper(lambda _: {"drawn": full.draw().values}, INDEX, description="some draws")
        assert ("some draws" in capsys.readouterr().err) is shown
