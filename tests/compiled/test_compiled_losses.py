"""Compiled losses are the losses, in one graph."""

import copy
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import slow
from problems import one_hidden_layer, two_hidden_layers, with_scales, with_signs
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pyro_perm as pp
from pyro_perm.compiled.recorder import Recorder
from pyro_perm.trace_sites import log_ratio_nodes

ESTIMATORS = [pp.Bethe(), pp.InfoNCE(4), *slow(pp.Exact(), pp.ImportanceSampled(4))]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    with pyro.settings.context(module_local_params=True):
        yield
    torch.compiler.reset()


def called_loss(problem, estimator=None, elbo=None):
    """The module of a loss that has been called once."""
    elbo = pp.FunctionalSymmetrized_ELBO() if elbo is None else elbo
    loss = elbo(problem.model, problem.guide(estimator))
    loss(*problem.args)
    return loss


def compiled(loss, backend="eager", fullgraph=True):
    return torch.compile(loss, fullgraph=fullgraph, backend=backend)


def value_and_gradients(called, args, parameters):
    pyro.set_rng_seed(3)
    value = called(*args)
    return [value, *torch.autograd.grad(value, parameters)]


def assert_same(module, called, args, expected=None):
    """With the same noise, for the parameters of a module, by default those of a loss."""
    parameters = [*module.parameters()]
    each = called, module if expected is None else expected
    found, right = (value_and_gradients(loss, args, parameters) for loss in each)
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_value_and_gradients_are_those_of_the_loss(estimator):
    problem = two_hidden_layers()
    loss = called_loss(problem, estimator)
    called = compiled(loss, "aot_eager")
    for _ in range(2):
        assert_same(loss, called, problem.args)
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("symmetrized", [True, False])
def test_graphs_do_not_break(symmetrized):
    problem = one_hidden_layer()
    if symmetrized:
        loss = called_loss(problem)
    else:
        loss = pp.FunctionalMeanField_ELBO()(problem.model, problem.base())
        loss(*problem.args)
    explained = torch._dynamo.explain(loss)(*problem.args)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


@pytest.mark.parametrize("vectorize", [*slow(False), True])
def test_several_particles(vectorize):
    problem = one_hidden_layer()
    elbo = pp.FunctionalSymmetrized_ELBO(num_particles=3, vectorize_particles=vectorize)
    loss = called_loss(problem, elbo=elbo)
    assert_same(loss, compiled(loss, "aot_eager"), problem.args)


@pytest.mark.slow
def test_flips_are_summed_over():
    problem = with_signs(one_hidden_layer())
    loss = called_loss(problem)
    assert_same(loss, compiled(loss), problem.args)


def test_modules_of_one_loss_are_told_apart():
    problem, elbo = one_hidden_layer(), pp.FunctionalSymmetrized_ELBO()
    first, second = (called_loss(problem, elbo=elbo) for _ in range(2))
    called = compiled(second)
    assert_same(second, called, problem.args)
    first(*problem.args)
    assert_same(first, compiled(first), problem.args)


@pytest.mark.slow
def test_copies_are_told_apart():
    problem = one_hidden_layer()
    loss = called_loss(problem)
    twin = copy.deepcopy(loss)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    for each in (twin, loss):
        assert_same(each, compiled(each), problem.args)


def test_graphs_are_recorded_anew_for_other_modes_of_modules():
    layer = torch.nn.Dropout(0.5)
    network = pp.bayesian(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), layer, torch.nn.Linear(4, 1)),
        likelihood=pp.likelihoods.gaussian(0.5),
    )
    args = torch.randn(6, 3), torch.randn(6, 1)
    loss = pp.FunctionalMeanField_ELBO()(network, AutoNormal(network))
    loss(*args)
    called = compiled(loss)
    for mode in (True, False):
        layer.train(mode)
        assert_same(loss.guide, called, args, loss)


def test_the_first_call_is_left_to_python():
    problem = one_hidden_layer()
    loss = pp.FunctionalSymmetrized_ELBO()(problem.model, problem.guide())
    with pytest.raises(RuntimeError, match="first_call_or_handlers"):
        compiled(loss)(*problem.args)
    called = compiled(loss, fullgraph=False)
    called(*problem.args)
    assert_same(loss, called, problem.args)


@pytest.mark.slow
def test_calls_inside_of_handlers_are_left_to_python():
    problem = one_hidden_layer()
    loss = called_loss(problem)
    called = compiled(loss, fullgraph=False)
    called(*problem.args)
    with poutine.trace(param_only=True):
        assert_same(loss, called, problem.args)
    torch.compiler.reset()
    called = compiled(loss)
    with poutine.trace(param_only=True), pytest.raises(RuntimeError, match="or_handlers"):
        called(*problem.args)


def test_recipes_are_left_to_python():
    def recipe(elbo):
        return pp.AnnealedKL(elbo, pp.linear_warm_up(9))

    problem = one_hidden_layer()
    losses = [called_loss(problem, elbo=recipe(pp.FunctionalSymmetrized_ELBO())) for _ in range(2)]
    losses[1].load_state_dict(losses[0].state_dict())
    called = compiled(losses[0], fullgraph=False)
    for _ in range(3):  # The weight changes from step to step.
        values = []
        for each in (called, losses[1]):
            pyro.set_rng_seed(1)
            values.append(each(*problem.args))
        torch.testing.assert_close(*values)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_tensors_that_a_graph_would_hold_for_ever_are_refused(shape):
    shift = torch.zeros(shape, requires_grad=True)
    problem = one_hidden_layer()

    def model(x, y):
        pyro.sample("z", dist.Normal(shift.sum(), 1.0))
        return problem.model(x, y)

    loss = pp.FunctionalSymmetrized_ELBO()(model, AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    loss(*problem.args)
    with pytest.raises(RuntimeError, match="neither among its arguments nor a parameter"):
        compiled(loss)(*problem.args)


def test_rescaled_units_are_refused():
    problem = with_scales(one_hidden_layer(activation=torch.relu))
    loss = called_loss(problem)
    with pytest.raises(RuntimeError, match="rescales its units"):
        compiled(loss)(*problem.args)


def test_second_derivatives_are_refused():
    problem = one_hidden_layer()
    loss = called_loss(problem)
    value = compiled(loss)(*problem.args)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(value, [*loss.parameters()], create_graph=True)


@pytest.mark.slow
def test_diverged_parameters_are_refused():
    problem = one_hidden_layer()
    loss = called_loss(problem, pp.InfoNCE(4))
    called = compiled(loss, "aot_eager")
    called(*problem.args)
    with torch.no_grad():
        next(loss.parameters()).fill_(torch.nan)
    with pyro.validation_enabled(), pytest.raises(FloatingPointError, match="diverged"):
        called(*problem.args)


@pytest.mark.slow
def test_a_loss_that_is_not_compiled_does_not_import_the_compiler():
    program = (
        "import sys\n"
        "import pyro_perm as pp\n"
        "import torch; torch.set_default_dtype(torch.float64)\n"
        "from problems import one_hidden_layer\n"
        "problem = one_hidden_layer()\n"
        "pp.FunctionalSymmetrized_ELBO()(problem.model, problem.guide())(*problem.args)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    folder = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=folder, check=False).returncode == 0


@pytest.mark.slow
def test_graphs_are_recorded_anew_for_other_shapes_and_numbers():
    def model(x, y, scale):
        w = pyro.sample("w", dist.Normal(0.0, scale).expand([3, 2]).to_event(2))
        mean = torch.tanh(x @ w.mT).sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    loss = pp.FunctionalSymmetrized_ELBO()(model, guide)
    x, y = torch.randn(6, 2), torch.randn(6)
    loss(x, y, 1.0)
    called = compiled(loss, "aot_eager")
    for num, scale in ((6, 1.0), (6, 2.0), (6, 0.5), (5, 0.5), (3, 0.25), (1, 2.0)):
        assert_same(loss, called, (x[:num], y[:num], scale))


def test_a_vector_drawn_jointly_is_refused():
    # Its estimate would be that of the marginals.
    model = one_hidden_layer(3)
    base = AutoMultivariateNormal(model.model, init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(base, model.symmetry(), estimator=pp.ImportanceSampled(4))
    (node,) = log_ratio_nodes(poutine.trace(guide).get_trace(*model.args).nodes).values()
    recorder = Recorder(lambda: None)
    with pytest.raises(TypeError, match="draw their sites independently"):
        recorder.log_ratio(node["fn"].density, guide.estimator)
