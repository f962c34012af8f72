"""Draws of a guide, and its density at them."""

import pyro.distributions as dist
import pytest
import torch
from marks import on_each
from problems import PROBLEMS, brute_force_log_q_symmetrized, local_latents, one_hidden_layer

import pyro_perm as pp


@pytest.mark.parametrize("permute", [True, False])
def test_draws_come_with_the_symmetrized_density(permute):
    problem = one_hidden_layer(3)
    guide = problem.guide(pp.Exact(), permute=permute)
    draws = guide.sample_posterior(5, *problem.args)
    assert draws.values["w1"].shape == (5, 3, 2) and draws.log_q.shape == (5,)
    base = guide.base
    parameters = [
        {site: getattr(tensors, site) for site in guide.symmetry.sites}
        for tensors in (base.locs, base.scales)
    ]
    rest = dist.Normal(base.locs.b2, base.scales.b2).log_prob(draws.values["b2"]).sum(-1)
    for k, log_q in enumerate(draws.log_q):
        values = {site: draws.values[site][k] for site in guide.symmetry.sites}
        expected = brute_force_log_q_symmetrized(guide.symmetry, *parameters, values)
        torch.testing.assert_close(log_q, (expected + rest[k]).detach())


@on_each(PROBLEMS)
def test_all_guides_draw_all_of_their_sites(problem):
    guide = problem.guide(pp.InfoNCE(num_permutations=2))
    draws = guide.sample_posterior(3, *problem.args)
    assert draws.values.keys() == set(guide.prototype_trace.stochastic_nodes)
    assert draws.log_q.isfinite().all()


def test_subsampled_guides_draw_for_all_rows():
    problem = local_latents()
    draws = problem.guide().sample_posterior(4, *problem.args)
    assert draws.values["shift"].shape == (4, 10)


def test_progress_can_be_shown(capsys):
    problem = one_hidden_layer(3)
    guide = problem.guide()
    guide.sample_posterior(2, *problem.args)
    assert not capsys.readouterr().err
    guide.sample_posterior(2, *problem.args, progress=True)
    assert "log q^G" in capsys.readouterr().err


def test_no_gradient_is_kept():
    problem = one_hidden_layer(3)
    draws = problem.guide().sample_posterior(2, *problem.args)
    assert not draws.log_q.requires_grad and not draws.values["w1"].requires_grad
