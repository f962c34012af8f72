"""Pyro's tools that look into programs, and its hints, work with symmetrized guides."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import normal, one_hidden_layer
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.infer.inspect import get_dependencies, get_model_relations
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.trace_sites import log_ratio_nodes, log_ratio_site

PROBLEM = one_hidden_layer()
KINDS = [(AutoNormal, None), (AutoDiagonalNormal, None), (AutoMultivariateNormal, 4)]


def symmetrized(kind, draws, permute):
    estimator = draws and pp.ImportanceSampled(draws)
    base = kind(PROBLEM.model, init_loc_fn=pp.init_to_fan_in, init_scale=0.5)
    return pp.AutoSymmetrized(base, PROBLEM.symmetry(), estimator=estimator, permute=permute)


@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize(("kind", "draws"), KINDS)
def test_dependencies_are_tracked(kind, draws, permute):
    """From the first call on: the log-ratio depends on what was drawn, not on its permutation."""
    guide = symmetrized(kind, draws, permute)
    found = get_dependencies(guide, PROBLEM.args)["prior_dependencies"]
    ratio = log_ratio_site(guide.symmetry.group)
    if kind is AutoNormal:
        drawn = {"w1_unconstrained", "b1_unconstrained", "w2_unconstrained"}
    else:
        drawn = {f"_{kind.__name__}_latent"}
    assert found[ratio].keys() == {ratio} | drawn
    relations = get_model_relations(guide, PROBLEM.args)["sample_sample"]
    assert set(relations[ratio]) == drawn
    permutations = {name for name in found if "_permutation" in name}
    assert len(permutations) == permute
    assert permutations <= set(relations["w1"])


@pytest.mark.parametrize("permute", [True, False])
def test_predictive_lists_no_log_ratio_among_draws_of_the_model(permute):
    guide = symmetrized(AutoNormal, None, permute)
    guide(*PROBLEM.args)
    draws = Predictive(PROBLEM.model, guide=guide, num_samples=3)(PROBLEM.args[0], None)
    assert draws.keys() <= {"w1", "b1", "w2", "b2", "y"}


def with_extra(site):
    def model():
        w = normal("w", 3)
        extra = pyro.sample("extra", site())
        pyro.sample("y", dist.Normal(w.sum() + extra.sum(), 1.0), obs=torch.tensor(0.5))

    return model


HINTS = {
    "discrete": (lambda: dist.Categorical(torch.ones(3)), r"enumerating.*hide=\['extra'\]"),
    "spherical": (lambda: dist.ProjectedNormal(torch.ones(3)), "ProjectedNormalReparam"),
}


@pytest.mark.parametrize("symmetry", [None, {"units": {"w": 0}}, {"units": {"none": 0}}])
@pytest.mark.parametrize("hint", HINTS)
def test_hints_about_supports_come_through(hint, symmetry):
    """Whatever is said about the symmetry afterwards."""
    site, message = HINTS[hint]
    given = symmetry and pp.PermutationSymmetry(symmetry)
    guide = pp.AutoSymmetrized(AutoNormal(with_extra(site)), given)
    with pytest.raises(ValueError, match=message):
        guide()


def test_two_symmetrized_guides_side_by_side_do_not_collide():
    """In a function, where nothing tells them apart but their sites."""

    def two_nets(x, y):
        f = 0.0
        for net in "ab":
            w1, w2 = normal(f"{net}1", 4, 2), normal(f"{net}2", 1, 4)
            f = f + (torch.tanh(x @ w1.mT) @ w2.mT).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, 0.5), obs=y)

    parts = [
        pp.AutoSymmetrized(
            AutoNormal(
                poutine.block(two_nets, expose=[f"{net}1", f"{net}2"]),
                init_loc_fn=pp.init_to_fan_in,
            )
        )
        for net in "ab"
    ]

    def guide(x, y):
        for part in parts:
            part(x, y)

    trace = poutine.trace(guide).get_trace(*PROBLEM.args)
    assert len(log_ratio_nodes(trace.nodes)) == 2
    assert sum("_permutation" in name for name in trace.nodes) == 2
    for loss in (Trace_ELBO(), pp.TraceSymmetrized_ELBO()):
        SVI(two_nets, guide, Adam({"lr": 0.01}), loss).step(*PROBLEM.args)
