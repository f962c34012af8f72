"""AutoSymmetrized behaves as Pyro's own autoguides do, and draws from q^G."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import traced_log_ratio
from marks import on_each
from problems import PROBLEMS, local_latents, normal, one_hidden_layer, two_hidden_layers
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoGuideList, AutoNormal
from pyro.optim import Adam
from torch.distributions import kl_divergence

import pyro_perm as pp
from pyro_perm.trace_sites import log_ratio_nodes

# Some models here are priors without data, of which no check can tell whether sites are tied.
pytestmark = pytest.mark.filterwarnings("ignore:group 'hidden' leaves the log joint as it is")


def train(guide, problem, steps=5, loss=None):
    svi = SVI(problem.model, guide, Adam({"lr": 0.01}), loss or Trace_ELBO())
    return [svi.step(*problem.args) for _ in range(steps)]


def test_draws_are_permuted_uniformly_and_independently_in_each_group():
    problem, num = two_hidden_layers(3, 2), 2400
    guide = problem.guide(init_scale=1e-6)  # so narrow that every draw shows its permutation
    with pyro.plate("particles", num, dim=-2):
        draws = guide(*problem.args)
    locs = guide.median()
    first = torch.cdist(draws["w1"].squeeze(1), locs["w1"].expand(num, 3, 2)).argmin(-1)
    second = torch.cdist(draws["w3"].squeeze(1).mT, locs["w3"].T.expand(num, 2, 1)).argmin(-1)
    permutations = {"first": first, "second": second}
    moved = guide.symmetry.apply(permutations, locs)
    for name, value in draws.items():
        torch.testing.assert_close(
            value.squeeze(1), moved[name].expand(num, *locs[name].shape), rtol=0, atol=1e-4
        )
    _, counts = torch.cat([first, second], -1).unique(dim=0, return_counts=True)
    assert len(counts) == 12
    chi_squared = (counts - num / 12).square().sum() / (num / 12)
    assert chi_squared < 31.3  # exceeded once in 1,000 by 11 degrees of freedom


@on_each(PROBLEMS)
def test_permuted_sites_have_the_density_of_a_delta(problem):
    guide = problem.guide()
    guide(*problem.args)
    nodes = poutine.trace(guide).get_trace(*problem.args).nodes
    for name in guide.symmetry.sites:
        delta, value = nodes[name]["fn"], nodes[name]["value"]
        assert isinstance(delta, dist.Delta)
        log_density = delta.log_prob(value.clone())
        torch.testing.assert_close(delta.log_prob(value), log_density, rtol=0, atol=0)
        assert log_density.isfinite().all()
        assert (delta.log_prob(value + 1) == -torch.inf).all()


@on_each(PROBLEMS)
def test_without_permutation_draws_are_the_bases(problem):
    guide = problem.guide(permute=False)
    guide(*problem.args)
    pyro.set_rng_seed(1)
    draws = guide(*problem.args)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(draws, guide.base(*problem.args))


def test_the_base_guide_goes_on_working_alone():
    problem = one_hidden_layer()
    base = problem.guide().base  # The guide itself is gone.
    pyro.set_rng_seed(1)
    assert base(*problem.args).keys() == base.median().keys()


@on_each(PROBLEMS)
def test_a_seed_gives_the_base_the_start_it_has_alone(problem):
    alone = problem.base()
    pyro.set_rng_seed(3)
    alone(*problem.args)
    expected = {name: value.detach().clone() for name, value in alone.named_parameters()}
    pyro.clear_param_store()
    guide = problem.guide()
    pyro.set_rng_seed(3)
    guide(*problem.args)
    torch.testing.assert_close(dict(guide.base.named_parameters()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("sample_shape", [(), (6,), (5, 4)], ids=str)
def test_first_call_and_replay_in_particle_plates(sample_shape):
    def model():
        normal("w", 3)
        with pyro.plate("tasks", 2, dim=-2), pyro.plate("units", 3, dim=-1):
            v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return v, pyro.sample("s", dist.LogNormal(0.0, 1.0))

    symmetry = pp.PermutationSymmetry({"hidden": {"w": 0, "v": -2, "s": -1}})
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in), symmetry)
    with pyro.plate_stack("particles", sample_shape, rightmost_dim=-3):
        guide_trace = poutine.trace(guide).get_trace()
        v, s = poutine.replay(model, trace=guide_trace)()
    assert v.shape == (*sample_shape, 2, 3, 2)
    assert s.shape == (*sample_shape, 2, 3)
    assert guide.median()["v"].shape == (2, 3, 2)
    log_ratio = traced_log_ratio(guide_trace)
    assert log_ratio.numel() == torch.Size(sample_shape).numel()
    torch.testing.assert_close(guide_trace.nodes["v"]["value"], v)
    guide_trace.compute_log_prob()
    assert torch.isfinite(guide_trace.log_prob_sum())


def test_permutations_are_replayed():
    problem = one_hidden_layer()
    guide = problem.guide()
    trace = poutine.trace(guide).get_trace(*problem.args)
    again = poutine.trace(poutine.replay(guide, trace=trace)).get_trace(*problem.args)
    torch.testing.assert_close(again.nodes["w1"]["value"], trace.nodes["w1"]["value"])
    torch.testing.assert_close(again.log_prob_sum(), trace.log_prob_sum())


def test_guide_and_model_share_the_subsample():
    problem = local_latents()
    guide = problem.guide()
    for _ in range(3):
        guide_trace = poutine.trace(guide).get_trace(*problem.args)
        model_trace = poutine.trace(poutine.replay(problem.model, trace=guide_trace))
        index = model_trace.get_trace(*problem.args).nodes["data"]["value"]
        assert torch.equal(index, guide_trace.nodes["data"]["value"])
        assert guide_trace.nodes["shift"]["value"].shape == (5,)
    assert guide.median()["shift"].shape == (10,)
    losses = train(guide, problem, 20)
    assert all(torch.isfinite(torch.tensor(losses)))


def test_data_may_come_in_batches():
    """The minibatch is an argument, and the plate takes its subsample from outside."""

    def model(index, x, y):
        w1, w2 = normal("w1", 3, 2), normal("w2", 1, 3)
        plate = pyro.plate("data", 10, subsample=index)
        f = (torch.tanh(x @ w1.T) @ w2.T).squeeze(-1)
        with plate:
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(f + shift, 1.0), obs=y)

    def create_plates(index, x, y):
        return pyro.plate("data", 10, subsample=index)

    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, create_plates=create_plates)
    guide = pp.AutoSymmetrized(base, pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 1}}))
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    x, y = torch.randn(10, 2), torch.randn(10)
    for index in torch.randperm(10).split(4):  # 4, 4 and 2
        svi.step(index, x[index], y[index])
        assert base(index, x[index], y[index])["shift"].shape == (len(index),)
    assert guide.median()["shift"].shape == (10,)


@on_each(PROBLEMS)
def test_median_and_quantiles_are_the_bases(problem):
    guide = problem.guide()
    train(guide, problem)
    torch.testing.assert_close(guide.median(*problem.args), guide.base.median(*problem.args))
    low, middle, high = (0.1, 0.5, 0.9)
    for name, value in guide.quantiles([low, middle, high]).items():
        assert value.shape == (3, *guide.median()[name].shape)
        assert (value[0] < value[1]).all() and (value[1] < value[2]).all()
        torch.testing.assert_close(value[1], guide.median()[name])


def test_predictive_draws_permuted_weights_and_invariant_predictions():
    problem = one_hidden_layer()
    guide = problem.guide(init_scale=1e-6)
    guide(*problem.args)
    x, _ = problem.args
    draws = Predictive(problem.model, guide=guide, num_samples=20)(x, None)
    assert draws["y"].shape == (20, 12)
    assert not torch.allclose(draws["w1"].std(0), torch.zeros(()), atol=1e-2)
    weights = {name: draws[name].squeeze(1) for name in guide.median()}

    def prediction(draw):
        one = {name: value[draw] for name, value in weights.items()}
        trace = poutine.trace(poutine.condition(problem.model, one)).get_trace(x, None)
        return trace.nodes["y"]["fn"].loc

    spread = torch.stack([prediction(draw) for draw in range(20)]).std(0)
    assert spread.max() < 1e-4


def test_parallel_predictive():
    def model(x):
        w1, w2 = normal("w1", 3, 2), normal("w2", 1, 3)
        f = (torch.tanh(x @ w1.mT) @ w2.mT).squeeze(-1)
        return pyro.sample("y", dist.Normal(f, 0.1).to_event(1))

    symmetry = pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 1}})
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in), symmetry)
    x = torch.randn(7, 2)
    guide(x)
    draws = Predictive(model, guide=guide, num_samples=20, parallel=True)(x)
    assert draws["w1"].shape == (20, 3, 2)
    assert draws["y"].shape == (20, 7)


def test_the_density_is_left_out_where_nobody_asks_for_it():
    problem = one_hidden_layer()
    guide = problem.guide(estimator=_Refusing())
    guide(*problem.args)
    with poutine.trace() as tracer, poutine.mask(mask=False):
        guide(*problem.args)
    assert not log_ratio_nodes(tracer.trace.nodes)
    with pytest.raises(ZeroDivisionError):
        poutine.trace(guide).get_trace(*problem.args)


class _Refusing(pp.Exact):
    def log_ratio(self, density):
        raise ZeroDivisionError


def test_scale_and_mask_weigh_the_whole_density():
    problem = one_hidden_layer()
    guide = problem.guide(pp.Exact())
    guide(*problem.args)

    def log_prob(handler):
        pyro.set_rng_seed(1)
        return poutine.trace(handler(guide)).get_trace(*problem.args).log_prob_sum()

    total = log_prob(lambda guide: guide)
    torch.testing.assert_close(log_prob(poutine.scale(scale=0.3)), 0.3 * total)
    assert log_prob(poutine.mask(mask=torch.tensor(False))) == 0


@pytest.mark.parametrize("estimator", [pp.Exact(), pp.Bethe(), pp.InfoNCE(4)], ids=str)
def test_guides_move_between_precisions(estimator):
    problem = one_hidden_layer()
    guide = problem.guide(estimator)
    guide(*problem.args)
    pyro.set_rng_seed(1)
    double = Trace_ELBO(num_particles=20).loss(problem.model, guide, *problem.args)
    guide.float().to("cpu")
    trace = poutine.trace(guide).get_trace(*problem.args)
    assert {trace.nodes[n]["value"].dtype for n in guide.median()} == {torch.float32}
    assert traced_log_ratio(trace).dtype == torch.float32
    guide.double()
    pyro.set_rng_seed(1)
    again = Trace_ELBO(num_particles=20).loss(problem.model, guide, *problem.args)
    assert again == pytest.approx(double, rel=1e-5)


def test_single_precision_models_stay_single():
    torch.set_default_dtype(torch.float32)
    problem = one_hidden_layer()
    args = tuple(tensor.float() for tensor in problem.args)
    guide = problem.guide(pp.Exact())
    trace = poutine.trace(guide).get_trace(*args)
    assert trace.log_prob_sum().dtype == torch.float32
    losses = [
        SVI(problem.model, guide, Adam({"lr": 0.01}), loss).step(*args)
        for loss in (Trace_ELBO(), pp.TraceSymmetrized_ELBO())
    ]
    assert all(torch.isfinite(torch.tensor(losses)))


@pytest.mark.parametrize("local", [False, True])
def test_a_trained_guide_can_be_wrapped(local):
    pyro.settings.set(module_local_params=local)
    problem = one_hidden_layer()
    base = problem.base()
    train(base, problem)
    parameters = dict(base.named_parameters())
    median = base.median()
    draw_alone = Predictive(problem.model, guide=base, num_samples=5)
    pyro.set_rng_seed(1)
    alone = draw_alone(*problem.args)
    guide = pp.AutoSymmetrized(base, problem.symmetry(), permute=False)
    guide(*problem.args)
    assert all(guide.get_parameter(f"base.{n}") is p for n, p in parameters.items())
    torch.testing.assert_close(guide.median(), median)
    pyro.set_rng_seed(1)
    wrapped = Predictive(problem.model, guide=guide, num_samples=5)(*problem.args)
    torch.testing.assert_close(wrapped, alone)
    train(guide, problem)
    assert not torch.equal(guide.median()["w1"], median["w1"])
    torch.testing.assert_close(guide.median(), base.median())


class DirectNormal(AutoGuide):
    """Samples the model's sites themselves, as TyXe's guides do."""

    def __init__(self, model):
        super().__init__(model)
        self.w1 = pyro.nn.PyroParam(torch.randn(3, 2))
        self.w2 = pyro.nn.PyroParam(torch.randn(1, 3))

    def forward(self):
        for name in ("w1", "w2"):
            pyro.sample(name, dist.Normal(getattr(self, name), 0.5).to_event(2))


@pytest.mark.parametrize("permute", [True, False])
def test_bases_may_sample_the_model_sites_themselves(permute):
    def model():
        normal("w1", 3, 2), normal("w2", 1, 3)

    symmetry = pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 1}})
    guide = pp.AutoSymmetrized(DirectNormal(model), symmetry, estimator=pp.Exact(), permute=permute)
    guide()
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    log_q = 0.0
    for name in ("w1", "w2"):
        node = trace.nodes.get(f"{name}_unconstrained", trace.nodes[name])
        q = dist.Normal(getattr(guide.base, name), 0.5)
        log_q = log_q + q.log_prob(node["value"]).sum()
        if permute:
            assert not torch.equal(node["value"], trace.nodes[name]["value"])
    ratio = traced_log_ratio(trace)
    torch.testing.assert_close(trace.log_prob_sum(), log_q + ratio)
    closed_form = [
        pp.TraceSymmetrized_ELBO().loss(model, _with_estimator(guide, pp.InfoNCE(1)))
        for _ in range(2)
    ]
    kl = sum(
        kl_divergence(dist.Normal(getattr(guide.base, n), 0.5), dist.Normal(torch.zeros(()), 1.0))
        .sum()
        .item()
        for n in ("w1", "w2")
    )
    assert closed_form == pytest.approx([kl, kl])


def _with_estimator(guide, estimator):
    guide.estimator = estimator
    return guide


def _list_of_parts(problem, wrap):
    """b2 by a point mass, the symmetric sites by a Normal."""
    parts = AutoGuideList(problem.model)
    parts.append(AutoDelta(poutine.block(problem.model, expose=["b2"])))
    rest = poutine.block(problem.model, hide=["b2"])
    parts.append(wrap(AutoNormal(rest, init_loc_fn=pp.init_to_fan_in)))
    return parts


@pytest.mark.parametrize("inside", [True, False], ids=["member", "base"])
def test_guide_lists(inside):
    problem = one_hidden_layer()
    if inside:
        guide = _list_of_parts(
            problem, lambda base: pp.AutoSymmetrized(base, problem.symmetry(), permute=True)
        )
    else:
        guide = pp.AutoSymmetrized(_list_of_parts(problem, lambda base: base), problem.symmetry())
    train(guide, problem)
    assert guide.median().keys() == {"w1", "b1", "w2", "b2"}
    trace = poutine.trace(guide).get_trace(*problem.args)
    assert traced_log_ratio(trace) < 0


def test_values_that_are_not_finite_are_reported_where_they_arise():
    problem = one_hidden_layer()
    guide = problem.guide(pp.Exact(), init_scale=1e-200)
    with pytest.raises(FloatingPointError, match=r"Exact\(\) found .* scales underflowed"):
        poutine.trace(guide).get_trace(*problem.args)
    with pyro.validation_enabled(False):
        poutine.trace(guide).get_trace(*problem.args)
