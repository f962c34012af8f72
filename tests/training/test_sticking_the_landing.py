"""No score term: no noise where the guide is the posterior, the same expectation elsewhere."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import one_hidden_layer
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from pyro.infer.autoguide.initialization import init_to_value

import pyro_perm as pp

LOCS, SCALE = torch.tensor([-0.5, 0.7], dtype=torch.float64), 0.4
SYMMETRY = pp.PermutationSymmetry({"units": {"w": 0}})
# The posterior of some models here is their prior, of which no check can tell what is tied.
pytestmark = pytest.mark.filterwarnings("ignore:group 'units' leaves the log joint as it is")


def mixture():
    """The posterior is the symmetrized guide."""
    one, other = (dist.Normal(locs, SCALE).to_event(1) for locs in (LOCS, LOCS.flip(0)))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    log_p = torch.logaddexp(one.log_prob(w), other.log_prob(w))
    pyro.factor("posterior", log_p - dist.Normal(0.0, 1.0).log_prob(w).sum(-1))


def single():
    pyro.sample("w", dist.Normal(LOCS, SCALE).to_event(1))


def at_landing(model):
    init = init_to_value(values={"w": LOCS})
    return AutoNormal(model, init_loc_fn=init, init_scale=SCALE)


def gradient(elbo, model, guide, *args):
    for parameter in guide.parameters():
        parameter.grad = None
    elbo.loss_and_grads(model, guide, *args)
    return torch.cat([p.grad.flatten() for p in guide.parameters()])


@pytest.mark.parametrize("symmetrized", [False, True])
def test_the_gradient_has_no_noise_where_the_guide_is_the_posterior(symmetrized):
    model = mixture if symmetrized else single
    guide = at_landing(model)
    if symmetrized:
        guide = pp.AutoSymmetrized(guide, SYMMETRY, estimator=pp.Exact())
    guide()
    assert gradient(pp.StickingTheLanding(Trace_ELBO()), model, guide).abs().max() < 1e-12
    assert gradient(Trace_ELBO(), model, guide).abs().max() > 1e-3


@pytest.mark.parametrize("estimator", [None, pp.Exact()])
def test_its_expectation_is_that_of_the_other_gradient(estimator):
    problem = one_hidden_layer(3)
    guide = problem.base() if estimator is None else problem.guide(estimator)
    guide(*problem.args)

    def gradients(elbo):
        pyro.set_rng_seed(0)
        draws = [gradient(elbo, problem.model, guide, *problem.args) for _ in range(60)]
        return torch.stack(draws)

    # Of the same draws, so that nothing but the score is between them.
    score = gradients(Trace_ELBO()) - gradients(pp.StickingTheLanding(Trace_ELBO()))
    apart = score.mean(0) / (score.std(0) / 60**0.5)
    assert apart.abs().max() < 4.5


@pytest.mark.parametrize("kind", [AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_joint_gaussians_are_served(kind):
    guide = kind(single)
    guide()
    found = gradient(pp.StickingTheLanding(Trace_ELBO()), single, guide)
    assert found.isfinite().all() and found.abs().max() > 0


def test_what_has_no_score_term_or_an_unknown_one_is_refused():
    closed = [TraceMeanField_ELBO(), pp.TraceSymmetrized_ELBO(), pp.FunctionalMeanField_ELBO()]
    for elbo in closed:
        with pytest.raises(TypeError, match="has divergences in closed form"):
            pp.StickingTheLanding(elbo)
    guide = AutoNormalizingFlow(
        single, lambda size: dist.transforms.affine_autoregressive(size, [4])
    )
    guide()
    with pytest.raises(TypeError, match="whose score is not known here"):
        gradient(pp.StickingTheLanding(Trace_ELBO()), single, guide)
