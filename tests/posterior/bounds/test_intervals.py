"""Certified intervals: what they hold, how methods are chosen, what is refused."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import draws_from, synthetic, two_layers
from marks import on_each
from problems import PROBLEMS, local_latents, one_hidden_layer
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger

import pyro_perm as pp
from pyro_perm.posterior.bounds.certificate import _best_of_halves, certify


def ready_guide(problem, **kwargs):
    guide = problem.guide(init_scale=0.7, **kwargs)
    guide(*problem.args)
    return guide


def evaluate(problem, guide, **kwargs):
    return pp.mutual_information(guide, *problem.args, progress=False, **kwargs)


@on_each(PROBLEMS)
def test_small_groups_are_exact(problem):
    result = evaluate(problem, ready_guide(problem), num_samples=8)
    assert result.lower == result.upper
    assert result.lower_method == result.upper_method == "exact"
    assert result.num_samples == 8
    assert result.log_order == sum(math.lgamma(n + 1) for n in _sizes(problem))
    assert result.lower_standard_error > 0


def _sizes(problem):
    symmetry = problem.symmetry()
    symmetry.verify(problem.model, *problem.args)
    return symmetry.groups.values()


@pytest.mark.slow
def test_the_portfolio_brackets_exact():
    shapes = {"w1": (6, 2), "w2": (7, 6), "w3": (1, 7)}
    spec = {"first": {"w1": 0, "w2": 1}, "second": {"w2": 0, "w3": 1}}
    density = synthetic(spec, shapes, 0.4, 1)
    draw = draws_from(density)
    reported = [draw() for _ in range(60)]
    exact = certify(iter(reported).__next__, 60, [pp.Exact()]).lower
    sampled = [kind(64) for kind in (pp.SampledChainRule, pp.ImportanceSampled)]
    result = certify(itertools.chain(reported, iter(draw, None)).__next__, 60, sampled)
    assert "exact" not in (result.lower_method, result.upper_method)
    for gap in (exact - result.lower, result.upper - exact):
        assert gap.mean() >= -4 * gap.std() / 60**0.5
    assert (result.upper - result.lower).mean() < 1.0


@pytest.mark.slow
def test_large_coupled_groups_get_an_interval_narrower_than_its_noise_and_name_the_methods():
    result = certify(draws_from(two_layers(20, 2, 0.2, 1)), 8).summary()
    names = {"chain rule", "importance sampling", "annealed importance sampling"}
    assert set(result.lower_method.split(" and ")) <= names
    assert set(result.upper_method.split(" and ")) <= names
    error = result.upper_standard_error
    assert -4 * error <= result.upper - result.lower < 2.0


def test_elbo_is_that_of_the_base_plus_information():
    problem = one_hidden_layer(5)
    guide = problem.guide(init_scale=0.1)
    result = pp.symmetrized_elbo(
        problem.model, guide, *problem.args, num_samples=60, progress=False
    )
    information = result.mutual_information
    assert result.lower == pytest.approx(result.base + information.lower)
    assert result.upper == pytest.approx(result.base + information.upper)
    assert result.log_order == information.log_order
    with torch.no_grad():
        plain = -torch.tensor(
            [Trace_ELBO().loss(problem.model, guide.base, *problem.args) for _ in range(60)]
        )
    error = math.hypot(plain.std().item() / 60**0.5, result.base_standard_error)
    assert abs(plain.mean().item() - result.base) < 4 * error
    # The KL term is in closed form: Monte Carlo noise comes from the likelihood alone.
    assert result.base_standard_error < 0.8 * plain.std().item() / 60**0.5


@pytest.mark.parametrize("permute", [True, False])
@pytest.mark.parametrize("problem", [one_hidden_layer(), local_latents()], ids=str)
def test_plain_guides_with_a_symmetry_give_the_same(problem, permute):
    guide = ready_guide(problem, permute=permute)
    own = evaluate(problem, guide, num_samples=100)
    plain = evaluate(
        problem, _unwrapped(problem, guide), num_samples=100, symmetry=problem.symmetry()
    )
    error = math.hypot(own.lower_standard_error, plain.lower_standard_error)
    assert abs(own.lower - plain.lower) < 4 * error


def _unwrapped(problem, guide):
    base = problem.base(init_scale=0.7)
    base(*problem.args)
    base.load_state_dict(guide.base.state_dict())
    return base


class Counting(pp.Bethe):
    """Notes how often a guide estimates."""

    num_estimates = 0

    def for_one_guide(self):
        return self

    def log_ratio(self, density):
        Counting.num_estimates += 1
        return super().log_ratio(density)


class Forgetful(Counting):
    """The same, of which it is not known that nothing is missed without it."""

    is_deterministic = False


@pytest.mark.parametrize("permute", [True, False])
def test_a_guides_own_estimates_are_spared_and_change_no_number(permute):
    problem, found, estimates = one_hidden_layer(), [], []
    guide = ready_guide(problem, permute=permute)
    for estimator in (Counting(), Forgetful()):
        guide.estimator, Counting.num_estimates = estimator, 0
        pyro.set_rng_seed(0)
        found.append(
            pp.symmetrized_elbo(problem.model, guide, *problem.args, num_samples=8, progress=False)
        )
        estimates.append(Counting.num_estimates)
    assert found[0] == found[1]
    assert estimates[0] == 0 and estimates[1] >= 8


def test_sequential_models_are_served():
    class Net(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.hidden = pyro.nn.PyroModule[torch.nn.Linear](2, 3)
            self.out = pyro.nn.PyroModule[torch.nn.Linear](3, 1)
            for layer in (self.hidden, self.out):
                for name, value in list(layer.named_parameters()):
                    prior = dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim())
                    setattr(layer, name, pyro.nn.PyroSample(prior))

        def forward(self, x, y):
            f = self.out(torch.tanh(self.hidden(x))).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(f, 0.5), obs=y)

    model, x = Net(), torch.randn(6, 2)
    symmetry = pp.PermutationSymmetry(
        {"hidden": {"hidden.weight": 0, "hidden.bias": 0, "out.weight": 1}}
    )
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in), symmetry)
    result = pp.symmetrized_elbo(model, guide, x, x[:, 0], num_samples=4, progress=False)
    assert math.isfinite(result.lower)
    assert 0 < result.mutual_information.lower <= math.log(6) + 1e-9


class Watching(pp.Estimator):
    """Notes whether the densities that it is given have a graph behind them."""

    is_lower_bound = True

    def __init__(self):
        self.graphs = []

    def log_ratio(self, density):
        tensors = [*density.values.values(), *density.locs.values(), *density.scales.values()]
        self.graphs.append(any(tensor.grad_fn is not None for tensor in tensors))
        return pp.Exact().log_ratio(density)


@pytest.mark.parametrize("evaluated", ["mutual_information", "symmetrized_elbo"])
def test_no_graph_is_kept(evaluated):
    problem = one_hidden_layer(3)
    guide, watching = ready_guide(problem), Watching()
    model = [problem.model] if evaluated == "symmetrized_elbo" else []
    options = {"num_samples": 4, "estimator": watching, "progress": False}
    getattr(pp, evaluated)(*model, guide, *problem.args, **options)
    assert watching.graphs and not any(watching.graphs)


@pytest.mark.parametrize(
    ("estimator", "sides"),
    [
        (pp.InfoNCE(8), ("InfoNCE", "trivial")),
        (pp.LeaveOneOut(8), ("trivial", "LeaveOneOut")),
        (pp.ImportanceSampled(8), ("importance sampling", "importance sampling")),
    ],
    ids=str,
)
def test_a_given_bound_is_used_and_the_other_side_is_trivial(estimator, sides):
    problem = one_hidden_layer(5)
    result = evaluate(problem, ready_guide(problem), num_samples=16, estimator=estimator)
    assert (result.lower_method, result.upper_method) == sides


def test_what_is_no_bound_is_refused():
    problem = one_hidden_layer(3)
    with pytest.raises(ValueError, match=r"Bethe.* bounds nothing; leave out estimator="):
        evaluate(problem, ready_guide(problem), estimator=pp.Bethe())


def test_methods_are_chosen_on_the_other_half_of_the_samples():
    # Each method shines on one half: the choice that looks best is the one that is not made.
    high_first = torch.tensor([10.0, 10.0, 0.0, 0.0])
    candidates = [("first", high_first), ("second", high_first.flip(0))]
    values, method = _best_of_halves(candidates, torch.argmax)
    assert values.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert method == "second and first"
    values, method = _best_of_halves(candidates, torch.argmin)
    assert values.tolist() == [10.0, 10.0, 10.0, 10.0]
    assert method == "first and second"


class Broken(pp.Estimator):
    """Claims to bound what it overshoots by the given amount."""

    is_lower_bound = True

    def __init__(self, excess):
        self.excess = excess

    def log_ratio(self, density):
        return -self.bounds(density).lower

    def bounds(self, density):
        exact = -pp.Exact().log_ratio(density)
        return pp.Bounds(exact + self.excess, exact)


def test_crossed_sides_are_reported_as_a_bug():
    problem = one_hidden_layer(4)
    guide = ready_guide(problem)
    with pytest.raises(RuntimeError, match=r"lower bound .* exceeds .* bug in pyro_perm"):
        evaluate(problem, guide, num_samples=8, estimator=Broken(50.0))
    with pytest.raises(FloatingPointError, match=r"by Broken are not numbers: .* of the method"):
        evaluate(problem, guide, num_samples=8, estimator=Broken(math.nan))
    assert evaluate(problem, guide, num_samples=8, estimator=Broken(0.0)).lower > 0


def test_a_guide_that_has_diverged_is_no_bug_of_the_bounds():
    problem = one_hidden_layer()
    guide = ready_guide(problem)
    with torch.no_grad():
        next(guide.parameters()).fill_(torch.nan)
    refused = pytest.raises(FloatingPointError, match=r"bounds by .* are not numbers: the base")
    with pyro.validation_enabled(False), refused:
        evaluate(problem, guide, num_samples=8)


@pytest.mark.parametrize("number", [0, 3, 8.0])
def test_too_few_samples_are_refused(number):
    problem = one_hidden_layer(3)
    with pytest.raises(ValueError, match="num_samples must be an int of at least 4"):
        evaluate(problem, ready_guide(problem), num_samples=number)


def test_guides_that_cannot_be_evaluated_are_refused():
    problem = one_hidden_layer(3)
    for guide, message in (
        ({}, "guide must be a guide, but is a dict"),
        (AutoNormalMessenger(problem.model), "cannot symmetrize AutoNormalMessenger"),
    ):
        with pytest.raises(TypeError, match=message):
            evaluate(problem, guide, symmetry=problem.symmetry())
    other = pp.PermutationSymmetry({"hidden": {"w1": 0, "b1": 0}})
    with pytest.raises(ValueError, match="leave out symmetry="):
        evaluate(problem, ready_guide(problem), symmetry=other)


def test_progress_can_be_switched_off(capfd):
    problem = one_hidden_layer(3)
    guide = ready_guide(problem)
    evaluate(problem, guide, num_samples=4)
    assert capfd.readouterr().err == ""
    pp.mutual_information(guide, *problem.args, num_samples=4)
    assert "0/4" in capfd.readouterr().err


def test_copied_guides_are_evaluated_with_the_model_at_hand():
    problem = one_hidden_layer(3)
    guide = problem.base()
    guide(*problem.args)
    copied = copy.deepcopy(guide)
    options = {"num_samples": 8, "symmetry": problem.symmetry(), "progress": False}
    elbo = pp.symmetrized_elbo(problem.model, copied, *problem.args, **options)
    assert elbo.lower <= elbo.upper + 1e-6
    information = pp.mutual_information(copied, *problem.args, **options)  # It has been verified.
    assert 0 < information.lower <= information.upper
    with pytest.raises(ValueError, match="the guide does not know its model"):
        evaluate(problem, copied, symmetry=problem.symmetry())


def information(lower, upper, **kwargs):
    fields = {
        "lower_standard_error": 0.0123456789,
        "upper_standard_error": 12.3456789,
        "log_order": 4.1234567890123,
        "lower_method": "chain rule",
        "upper_method": "importance sampling",
        "num_samples": 64,
    }
    return pp.MutualInformation(lower=lower, upper=upper, **fields | kwargs)


@pytest.mark.parametrize(
    ("lower", "upper", "printed"),
    [
        (1.0, 2.0, (1.0, 2.0)),
        (-0.5, 5.0, (0.0, 4.1234567890123)),  # I lies in [0, log |G|].
        (2.01, 1.99, (1.99, 2.01)),  # Each stays on its side.
        (4.2, 4.15, (4.1234567890123, 4.1234567890123)),
        (-0.1, -0.2, (0.0, 0.0)),
    ],
)
def test_printed_bounds_lie_within_the_possible_and_in_order(lower, upper, printed):
    found = information(lower, upper)
    assert (found.lower, found.upper) == (lower, upper)
    assert found.interval == printed
    elbo = pp.SymmetrizedELBO(
        -10.0 + lower, -10.0 + upper, 1.0, 1.0, -10.0, 1.0, found.log_order, found
    )
    assert elbo.interval == (-10.0 + printed[0], -10.0 + printed[1])


def test_results_print_as_short_tables():
    why = "it would take longer " + "and longer " * 10
    found = information(-0.001, 3.98765432109, skipped=f"Exact(): {why}")
    lines = str(found).splitlines()
    assert repr(found) == str(found)
    assert lines[:3] == [
        "64 samples, in nats; log |G| = 4.12",
        "  I(g; w), lower bound 0.00 +-  0.01  chain rule",
        "  I(g; w), upper bound 3.99 +- 12.35  importance sampling",
    ]
    assert lines[3].startswith("  skipped: Exact(): it would") and lines[4].startswith("    longer")
    assert len(lines) == 5 and max(map(len, lines)) <= 100
    elbo = pp.SymmetrizedELBO(-100.001, -96.0, 20.0, 20.0, -100.0, 20.0, found.log_order, found)
    assert str(elbo).splitlines() == [
        "64 samples, in nats; log |G| = 4.12",
        "  ELBO(q)                -100.00 +- 20.00",
        "  ELBO(q^G), lower bound -100.00 +- 20.00",
        "  ELBO(q^G), upper bound  -96.01 +- 20.00",
        "  I(g; w), lower bound      0.00 +-  0.01  chain rule",
        "  I(g; w), upper bound      3.99 +- 12.35  importance sampling",
        *lines[3:],
    ]
