"""Every loss, and every route to it, counts log q^G exactly once."""

import pyro
import pytest
import torch
from losses import Recorder, loss_and_grads, started
from marks import on_each, slow
from problems import (
    PROBLEMS,
    hierarchical,
    local_latents,
    one_hidden_layer,
    two_hidden_layers,
    with_signs,
)
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
)

import pyro_perm as pp
from pyro_perm.trace_sites import log_ratio_nodes

STOCK = [
    Trace_ELBO,
    TraceMeanField_ELBO,
    TraceGraph_ELBO,
    TraceEnum_ELBO,
    TraceTMC_ELBO,
    RenyiELBO,
]


def make_loss(kind, num_particles=1):
    return kind(
        num_particles=num_particles, vectorize_particles=True, strict_enumeration_warning=False
    )


def log_weights(model, guide_trace, args, num_particles=1):
    """Log joint of the model minus the guide trace's own log density, one value a particle."""
    replayed = poutine.replay(model, trace=guide_trace)
    if num_particles > 1:
        replayed = pyro.plate("num_particles_vectorized", num_particles, dim=-2)(replayed)
    model_trace = poutine.trace(replayed).get_trace(*args)
    total = torch.zeros(num_particles)
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        trace.compute_log_prob()
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and name != "num_particles_vectorized":
                log_prob = torch.as_tensor(site["log_prob"])
                if num_particles > 1:
                    log_prob = log_prob.expand(num_particles, *log_prob.shape[1:])
                total = total + sign * log_prob.reshape(num_particles, -1).sum(-1)
    return total


@pytest.mark.parametrize("permute", [True, False], ids=["permute", "plain"])
@pytest.mark.parametrize("num_particles", [*slow(1), 3])
@on_each(PROBLEMS)
def test_stock_losses_are_the_traced_log_weight(problem, num_particles, permute):
    guide = started(problem, permute=permute)
    gradients = {}
    for kind in STOCK:
        recorder = Recorder(guide)
        loss = make_loss(kind, num_particles)
        pyro.set_rng_seed(1)
        value = torch.as_tensor(loss.loss(problem.model, recorder, *problem.args)).item()
        weights = log_weights(problem.model, recorder.trace, problem.args, num_particles)
        if kind is RenyiELBO:  # Of order 0: the importance weighted bound.
            expected = -(weights.logsumexp(0) - torch.tensor(num_particles).log())
        else:
            expected = -weights.mean()
        if kind is TraceMeanField_ELBO:
            # Pyro's kl(Delta, p) drops the Jacobian, of a plain AutoNormal too.
            jacobians = [recorder.trace.nodes[name]["fn"].log_density for name in guide.median()]
            expected = expected - sum(torch.as_tensor(j).sum() for j in jacobians) / num_particles
        assert value == pytest.approx(expected.item(), abs=1e-8)
        if kind is not RenyiELBO or num_particles == 1:
            _, gradients[kind] = loss_and_grads(loss, problem.model, guide, problem.args)
    if problem.name == "hierarchical":
        del gradients[TraceMeanField_ELBO]
    for gradient in gradients.values():
        torch.testing.assert_close(gradient, gradients[Trace_ELBO])


@on_each(PROBLEMS)
def test_permuted_draws_weigh_what_unpermuted_ones_do(problem):
    guide = started(problem)
    permuted = poutine.trace(guide).get_trace(*problem.args)
    base_draws = permuted.copy()
    for name in guide.median():
        base_draws.remove_node(name)
    guide.permute = False
    plain = poutine.trace(poutine.replay(guide, trace=base_draws)).get_trace(*problem.args)
    assert any(
        not torch.equal(plain.nodes[name]["value"], permuted.nodes[name]["value"])
        for name in guide.symmetry.sites
    )
    torch.testing.assert_close(
        log_weights(problem.model, plain, problem.args),
        log_weights(problem.model, permuted, problem.args),
    )


COMPILED = {
    Trace_ELBO: JitTrace_ELBO,
    TraceGraph_ELBO: JitTraceGraph_ELBO,
    TraceEnum_ELBO: JitTraceEnum_ELBO,
}
OVERLAPPING = [
    (Trace_ELBO, one_hidden_layer(14), pp.Bethe()),  # too many for the exact sum
    *slow(
        (Trace_ELBO, hierarchical(), pp.Exact()),
        (Trace_ELBO, two_hidden_layers(), pp.Bethe()),
        (Trace_ELBO, with_signs(one_hidden_layer(3)), pp.Bethe()),
        (Trace_ELBO, local_latents(), pp.Bethe()),
        (TraceGraph_ELBO, one_hidden_layer(), pp.Bethe()),
        (TraceEnum_ELBO, one_hidden_layer(), pp.Bethe()),
    ),
]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize(("kind", "problem", "estimator"), OVERLAPPING)
def test_compiled_loss_is_the_loss(kind, problem, estimator):
    guide = started(problem, estimator, init_scale=2.0)
    options = {
        "num_particles": 3,
        "vectorize_particles": True,
        "max_plate_nesting": 1,
        "strict_enumeration_warning": False,
    }
    compiled = COMPILED[kind](**options, ignore_jit_warnings=True)
    loss_and_grads(compiled, problem.model, guide, problem.args)
    for move in (0.0, 0.3, -1.0):
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter += move * torch.randn_like(parameter)
        value, gradient = loss_and_grads(compiled, problem.model, guide, problem.args)
        expected = loss_and_grads(kind(**options), problem.model, guide, problem.args)
        assert value == pytest.approx(expected[0])
        torch.testing.assert_close(gradient, expected[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_compiled_mean_field_loss_has_the_expectation_of_the_loss():
    problem = one_hidden_layer()  # The compiled loss draws in another order: no common seed.
    guide = started(problem)
    options = {"num_particles": 1000, "vectorize_particles": True, "max_plate_nesting": 1}
    losses = [JitTraceMeanField_ELBO(**options, ignore_jit_warnings=True), Trace_ELBO(**options)]
    values = [
        [loss.loss_and_grads(problem.model, guide, *problem.args) for loss in losses]
        for _ in range(10)
    ]
    difference = torch.tensor(values) @ torch.tensor([1.0, -1.0])
    error = difference.std() / len(values) ** 0.5
    assert error < 0.3  # A missing or doubled I would be off by 2.6.
    assert difference.mean().abs() < 4 * error


@pytest.mark.parametrize("permute", [True, False])
def test_symmetrized_guides_are_corrected_once(permute):
    problem = one_hidden_layer()
    guide = started(problem, permute=permute)
    recorder = Recorder(guide)
    given = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry(), estimator=pp.Exact())
    expected, _ = loss_and_grads(pp.TraceSymmetrized_ELBO(), problem.model, guide, problem.args)
    for loss in (pp.TraceSymmetrized_ELBO(), given):
        pyro.set_rng_seed(1)
        assert loss.loss(problem.model, recorder, *problem.args) == pytest.approx(expected)
    assert len(log_ratio_nodes(recorder.trace.nodes)) == 1


def test_contradictions_between_guide_and_loss_are_refused():
    problem = one_hidden_layer()
    guide = started(problem)
    other = pp.PermutationSymmetry({"hidden": {"w1": 0}})
    with pytest.raises(ValueError, match=r"(?s)another symmetry than the loss.*leave out"):
        pp.TraceSymmetrized_ELBO(symmetry=other).loss(problem.model, guide, *problem.args)
    loss = pp.TraceSymmetrized_ELBO(estimator=pp.Bethe())
    with pytest.raises(ValueError, match=r"Exact\(\), but the loss was given Bethe"):
        loss.loss(problem.model, Recorder(guide), *problem.args)


def test_the_default_estimator_is_one_for_all_steps(monkeypatch):
    """It remembers which units were far apart."""
    used = []
    monkeypatch.setattr(
        pp.Bethe, "log_ratio", lambda self, density: used.append(self) or torch.tensor(0.0)
    )
    problem = one_hidden_layer()
    loss = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry())
    base = problem.base()
    for _ in range(2):
        loss.loss(problem.model, base, *problem.args)
    first, second = used
    assert first is second


@pytest.mark.parametrize("kind", [Trace_ELBO, pp.TraceSymmetrized_ELBO])
def test_torch_optimizers_train_the_loss_module(kind):
    pyro.settings.set(module_local_params=True)
    problem = one_hidden_layer()
    guide = started(problem)
    module = kind(num_particles=8, vectorize_particles=True)(problem.model, guide)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)

    def loss(seed):
        pyro.set_rng_seed(seed)
        return module(*problem.args)

    direct = kind(num_particles=8, vectorize_particles=True)
    first = loss(1)
    pyro.set_rng_seed(1)
    assert first.item() == pytest.approx(direct.loss(problem.model, guide, *problem.args))
    for seed in range(20):
        optimizer.zero_grad()
        loss(seed).backward()
        optimizer.step()
    assert loss(1).item() < first.item() - 5


def test_one_loss_serves_several_models():
    first, second = one_hidden_layer(), one_hidden_layer(5)
    loss = pp.TraceSymmetrized_ELBO(symmetry=first.symmetry())
    for problem in (first, second, first):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        found = loss.loss(problem.model, problem.base(), *problem.args)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        alone = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry())
        assert found == alone.loss(problem.model, problem.base(), *problem.args)


def test_a_loss_recognises_the_guides_symmetry_however_it_is_written():
    problem = one_hidden_layer()
    guide = problem.guide()
    backwards = {"hidden": {"w2": -1, "b1": -1, "w1": -2}}
    others = {"hidden": {"w1": 0, "b1": 0}}, {"hidden": {"w1": 1, "b1": 0, "w2": 1}}
    for spec, fits in ((backwards, True), *((other, False) for other in others)):
        loss = pp.TraceSymmetrized_ELBO(symmetry=pp.PermutationSymmetry(spec))
        if fits:
            assert abs(loss.loss(problem.model, guide, *problem.args)) < 1e6
        else:
            with pytest.raises(ValueError, match="over another symmetry than the loss was given"):
                loss.loss(problem.model, guide, *problem.args)


def test_base_guides_discover_their_symmetry():
    problem = one_hidden_layer()
    base = problem.base()
    base(*problem.args)
    pyro.set_rng_seed(1)
    found = pp.TraceSymmetrized_ELBO(estimator=pp.Exact()).loss(problem.model, base, *problem.args)
    pyro.set_rng_seed(1)
    given = pp.TraceSymmetrized_ELBO(symmetry=problem.symmetry(), estimator=pp.Exact())
    assert found == pytest.approx(given.loss(problem.model, base, *problem.args))
