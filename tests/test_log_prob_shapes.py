"""Sites batched along other dimensions than their plates' are refused, as by Pyro's losses."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.runtime import _PYRO_STACK

import pyro_perm as pp
from pyro_perm.program.log_prob_shapes import LogProbShapes

X, Y = torch.linspace(-1, 1, 5), torch.zeros(5)
COLUMN = Y.unsqueeze(-1)


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((w * x.unsqueeze(-1)).tanh().sum(-1), 1.0), obs=y)


def without_plate(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal((w * x.unsqueeze(-1)).tanh().sum(-1), 1.0), obs=y)


def batched_prior(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((w * x.unsqueeze(-1)).tanh().sum(-1), 1.0), obs=y)


class BatchedPyroSample(PyroModule):
    def __init__(self):
        super().__init__()
        self.w = PyroSample(dist.Normal(0.0, 1.0).expand([3]))

    def forward(self, x, y=None):
        f = (self.w * x.unsqueeze(-1)).tanh().sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, 1.0), obs=y)


WRONG = {
    "observations": (model, COLUMN, "y"),
    "no plate": (without_plate, Y, "y"),
    "prior": (batched_prior, Y, "w"),
    "PyroSample": (BatchedPyroSample(), Y, "w"),
}


def guide_of(program):
    return AutoNormal(program, init_loc_fn=pp.init_to_fan_in)


def run(program):
    """A guide that has run, on data of which its model thinks nothing ill."""
    guide = guide_of(program)
    guide(X, Y)
    return guide


SYMMETRY = pp.PermutationSymmetry({"units": {"w": 0}})


def fit(program, y, guide):
    pp.fit(program, guide, (X, y), steps=1, progress=False)


def sgd_step(program, y, elbo):
    pyro.infer.SVI(program, run(program), pyro.optim.SGD({"lr": 0.1}), elbo).step(X, y)


QUIET = {"progress": False}
CALLS = {
    "Trace_ELBO": lambda p, y: Trace_ELBO().loss(p, run(p), X, y),
    "TraceSymmetrized_ELBO": lambda p, y: pp.TraceSymmetrized_ELBO().loss(p, run(p), X, y),
    "fit": lambda p, y: fit(p, y, guide_of(p)),
    "fit a guide that has run": lambda p, y: fit(p, y, run(p)),
    "fit symmetrized": lambda p, y: fit(p, y, pp.AutoSymmetrized(guide_of(p))),
    "mean field": lambda p, y: sgd_step(p, y, pp.FunctionalMeanField_ELBO()),
    "symmetrized": lambda p, y: sgd_step(p, y, pp.FunctionalSymmetrized_ELBO(symmetry=SYMMETRY)),
    "vectorized": lambda p, y: sgd_step(
        p, y, pp.FunctionalMeanField_ELBO(num_particles=2, vectorize_particles=True)
    ),
    "mutual_information": lambda p, y: pp.mutual_information(
        pp.AutoSymmetrized(run(p)), X, y, num_samples=4, **QUIET
    ),
    "symmetrized_elbo": lambda p, y: pp.symmetrized_elbo(p, run(p), X, y, num_samples=4, **QUIET),
    "log_evidence": lambda p, y: pp.log_evidence(
        p, X, y, num_particles=2, num_temperatures=2, **QUIET
    ),
    "predict": lambda p, y: pp.predict(p, run(p), X, y, num_samples=2, **QUIET),
    "to_arviz": lambda p, y: pp.to_arviz(p, run(p), X, y, num_samples=2, **QUIET),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call", CALLS)
def test_everything_that_runs_a_model_refuses_what_trace_elbo_refuses(call, wrong):
    program, y, site = WRONG[wrong]
    with pytest.raises(ValueError, match=f'at site "{site}", invalid log_prob shape') as error:
        CALLS[call](program, y)
    assert "- enclose the batched tensor in a with pyro.plate(...): context" in str(error.value)


@pytest.mark.parametrize("kind", [pp.FunctionalMeanField_ELBO, pp.FunctionalSymmetrized_ELBO])
def test_a_loss_refuses_again_where_it_has_refused(kind):
    guide, loss = run(model), kind()
    for _ in range(2):
        with pytest.raises(ValueError, match='at site "y", invalid log_prob shape'):
            loss.loss(model, guide, X, COLUMN)


def test_later_steps_of_a_loss_look_at_no_shapes():
    looked_at = []

    def watched(x, y):
        looked_at.append(any(isinstance(handler, LogProbShapes) for handler in _PYRO_STACK))
        model(x, y)

    guide, loss = run(model), pp.FunctionalMeanField_ELBO()
    for _ in range(3):
        loss.loss(watched, guide, X, Y)
    assert looked_at == [True, False, False]


@pytest.mark.parametrize("call", sorted(CALLS))
def test_nothing_is_refused_where_validation_is_off(call):
    with pyro.validation_enabled(False):
        CALLS[call](without_plate, Y)


@pytest.mark.parametrize("call", sorted(CALLS))
def test_right_shapes_are_served(call):
    CALLS[call](model, Y)


def test_guides_are_compared_on_right_shapes_alone():
    with pyro.settings.context(module_local_params=True):
        guides = {"one": run(model), "other": run(model)}
        for args, held_out in (((X, COLUMN), None), ((X, Y), (X, COLUMN))):
            with pytest.raises(ValueError, match='at site "y", invalid log_prob shape'):
                pp.compare(
                    model, guides, *args, held_out=held_out, num_predictive_samples=2, **QUIET
                )


def test_a_laplace_approximation_is_made_of_right_shapes_alone():
    mode = AutoLaplaceApproximation(model)
    mode(X, Y)
    with pytest.raises(ValueError, match='at site "y", invalid log_prob shape'):
        pp.laplace_approximation(mode, X, COLUMN)


def test_losses_between_solutions_are_of_right_shapes_alone():
    for loss in (pp.negative_log_joint, pp.negative_log_likelihood):
        assert loss(model, X, Y)({"w": torch.zeros(3)}) > 0
        with pytest.raises(ValueError, match='at site "y", invalid log_prob shape'):
            loss(model, X, COLUMN)({"w": torch.zeros(3)})


def test_samples_of_mcmc_go_with_what_mcmc_adds_up():
    mcmc = MCMC(NUTS(batched_prior), num_samples=4, warmup_steps=4, disable_progbar=True)
    mcmc.run(X, Y)
    assert pp.predict(batched_prior, mcmc, X, Y, **QUIET).log_likelihood.shape == (4, 5)
    pp.to_arviz(batched_prior, mcmc, X, Y, **QUIET)
    for posterior in (mcmc, mcmc.get_samples()):
        with pytest.raises(ValueError, match='at site "y", invalid log_prob shape'):
            pp.predict(batched_prior, posterior, X, COLUMN, **QUIET)
    with pytest.raises(ValueError, match='at site "y", invalid log_prob shape'):
        pp.to_arviz(batched_prior, mcmc, X, COLUMN, **QUIET)
