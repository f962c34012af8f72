"""Which methods a certificate tries, in which order, where it stops, and that it stays one."""

import itertools
import math
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from densities import draws_from, mean_and_error, one_layer, synthetic, two_layers
from marks import slow
from problems import one_hidden_layer, two_hidden_layers, with_signs

import pyro_perm as pp
from pyro_perm.posterior.bounds import portfolio
from pyro_perm.posterior.bounds.certificate import certify
from pyro_perm.posterior.bounds.portfolio import NUM_PILOTS, Budget, competitors
from pyro_perm.program.call import Call
from pyro_perm.sampling import draw_density

NAMES = ["SampledChainRule", "ImportanceSampled", *2 * ["AnnealedImportanceSampled"]]


def names_of(methods):
    return [type(method).__name__ for method in methods]


def density_of(problem):
    guide = problem.guide()
    guide(*problem.args)
    return draw_density(Call(guide, problem.args, {}), guide.symmetry.group)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (one_layer(16, 3, 0.3, 1), ["Exact", "ImportanceSampled"]),
        (one_layer(40, 3, 0.3, 1), ["ImportanceSampled"]),
        (two_layers(4, 3, 0.3, 1), ["Exact", *NAMES]),
        (two_layers(20, 3, 0.3, 1), NAMES),
    ],
)
def test_methods_compete_from_the_cheapest_on_after_the_exact_one(density, expected):
    methods = competitors(density)
    assert names_of(methods) == expected
    assert all(method.serves(density) is None for method in methods)
    costs = [method.cost(density) for method in methods if not isinstance(method, pp.Exact)]
    assert costs == sorted(costs) and costs[0] > 0


def test_where_units_flip_the_chain_rule_alone_competes():
    problem = with_signs(two_hidden_layers(6, 6, torch.tanh))
    assert names_of(competitors(density_of(problem))) == ["SampledChainRule"]


@dataclass(frozen=True)
class Toy(pp.Estimator):
    """Bounds around the truth by a given width, after some seconds, as often as it is asked."""

    width: float = 1.0
    price: float = 1.0
    seconds: float = 0.0
    calls: list = field(default_factory=list, compare=False)

    is_lower_bound = True

    def cost(self, density):
        return self.price

    def log_ratio(self, density):
        return -self.bounds(density).lower

    def bounds(self, density):
        self.calls.append(density.batch_shape.numel())
        CLOCK.now += self.seconds * density.batch_shape.numel()
        exact = -pp.Exact().log_ratio(density)
        return pp.Bounds(exact - self.width / 2, exact + self.width / 2)


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(portfolio, "time", CLOCK)


NOISY = one_layer(4, 2, 0.3, 1)  # The standard deviation of I(g; w) is about half a nat.


def test_trials_stop_where_the_interval_is_narrower_than_it_is_noisy():
    wide, enough, narrow = (Toy(width) for width in (2.0, 0.1, 0.0))
    result = certify(draws_from(NOISY), 16, [wide, enough, narrow]).summary()
    assert result.lower_standard_error > 0.1
    assert wide.calls == [NUM_PILOTS]
    assert enough.calls == [NUM_PILOTS, 16]
    assert narrow.calls == []
    assert result.skipped.startswith("Toy(width=0.0")
    assert "the interval is 0.1 nats wide, its standard error 0." in result.skipped
    # A hundred times more samples are ten times less noisy.
    narrow.calls.clear()
    skipped = certify(draws_from(NOISY), 1600, [wide, enough, narrow]).skipped
    assert narrow.calls == [NUM_PILOTS, 1600] and skipped == ""


def test_noise_of_the_elbo_counts():
    draw, narrow = draws_from(NOISY), Toy(0.0)

    def noisy():
        return draw()._replace(elbo=100 * torch.randn(()).item())

    skipped = certify(noisy, 16, [Toy(2.0), narrow]).skipped
    assert narrow.calls == [] and "the interval is 2 nats wide" in skipped


@pytest.mark.parametrize("weight", [1e-3, 0.0])
def test_noise_of_the_elbo_counts_by_the_weight_of_the_information(weight):
    """A loss per observation, say, scales the information and the noise of the ELBO alike."""
    draw, narrow = draws_from(NOISY), Toy(0.0)

    def noisy():
        return draw()._replace(elbo=weight * 100 * torch.randn(()).item(), weight=weight)

    assert "wide" in certify(noisy, 16, [Toy(2.0), narrow]).skipped
    assert narrow.calls == []


def test_an_outlier_of_the_elbo_among_the_pilot_draws_does_not_end_the_search():
    draw, narrow, number = draws_from(NOISY), Toy(0.0), itertools.count()

    def with_an_outlier():
        return draw()._replace(elbo=1e6 if next(number) == 16 + NUM_PILOTS - 1 else 0.0)

    assert certify(with_an_outlier, 16, [Toy(2.0), narrow]).skipped == ""
    assert narrow.calls == [NUM_PILOTS, 16]


def test_one_method_needs_no_pilot_nor_does_the_exact_one():
    alone = Toy()
    certify(draws_from(NOISY), 8, [alone])
    assert alone.calls == [8]
    rest = Toy()
    result = certify(draws_from(NOISY), 8, [pp.Exact(), rest])
    assert rest.calls == [] and result.lower_method == "exact"


def test_only_the_best_of_either_side_bound_the_reported_draws():
    @dataclass(frozen=True)
    class Lower(Toy):
        method = "the same name"

        def bounds(self, density):
            return super().bounds(density)._replace(upper=None)

    @dataclass(frozen=True)
    class Upper(Toy):
        method = "the same name"

        def bounds(self, density):
            return super().bounds(density)._replace(lower=None)

    worse, lower, upper = Toy(9.0), Lower(2.0), Upper(3.0)
    result = certify(draws_from(NOISY), 1000, [worse, lower, upper])
    assert [each.calls for each in (worse, lower, upper)] == [[8], [8, 1000], [8, 1000]]
    assert result.lower_method == result.upper_method == "the same name"
    torch.testing.assert_close(result.upper - result.lower, torch.full((1000,), 2.5))


def test_the_reported_draws_have_no_say():
    """Neither in the choice nor in when to stop: other draws with the same pilot change nothing."""
    draw = draws_from(two_layers(8, 2, 0.3, 1))

    def choice(seed):
        torch.manual_seed(seed)
        reported = [draw() for _ in range(4)]
        torch.manual_seed(1)
        certificate = certify(itertools.chain(reported, iter(draw, None)).__next__, 4)
        return certificate.skipped, certificate.lower

    (skipped, lower), (again, other) = choice(2), choice(3)
    assert skipped == again
    assert not torch.equal(lower, other)


def test_pilot_draws_are_not_reported():
    draw, seen = draws_from(NOISY), []

    def noted():
        seen.append(draw())
        return seen[-1]

    values = certify(noted, 6, [Toy(1.0), Toy(0.5)]).lower
    assert len(seen) == 6 + NUM_PILOTS
    exact = torch.stack([-pp.Exact().log_ratio(each.density) for each in seen[:6]])
    torch.testing.assert_close(values, exact - 0.25)


NOISES = {
    "normal": torch.randn,
    "rarely high": lambda shape: torch.randn(shape).exp() - math.exp(0.5),
    "rarely low": lambda shape: math.exp(0.5) - torch.randn(shape).exp(),
}


@dataclass(frozen=True)
class Noisy(pp.Estimator):
    """Bounds that are tight, but for noise that tempts whoever chooses by it."""

    number: int
    noise: str

    is_lower_bound = True

    def cost(self, density):
        return 1.0 + self.number

    def log_ratio(self, density):
        return -self.bounds(density).lower

    def bounds(self, density):
        exact = -pp.Exact().log_ratio(density)
        lower, upper = (2 * NOISES[self.noise](exact.shape) for _ in range(2))
        return pp.Bounds(exact + lower, exact + upper)


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise",
    [
        "normal",
        *slow("rarely high", "rarely low"),
    ],
)
def test_choosing_among_noisy_methods_leaves_bounds_on_their_side(noise):
    methods = [Noisy(number, noise) for number in range(12)]
    draw, gaps = draws_from(one_layer(4, 2, 0.3, 1)), {"lower": [], "upper": []}
    naive = []
    for _ in range(150):
        reported = [draw() for _ in range(6)]
        found = certify(itertools.chain(reported, iter(draw, None)).__next__, 6, methods)
        densities = [each.density for each in reported]
        exact = torch.stack([-pp.Exact().log_ratio(density) for density in densities])
        gaps["lower"].append((exact - found.lower).mean())
        gaps["upper"].append((found.upper - exact).mean())
        naive.append(-(2 * NOISES[noise]((12, 6))).mean(1).max())
    for gap in gaps.values():
        mean, error = mean_and_error(torch.stack(gap))
        assert mean >= -4 * error
    # The best average on the reported draws themselves is no bound.
    mean, error = mean_and_error(torch.stack(naive))
    assert mean < -10 * error


def test_what_takes_too_long_is_skipped():
    quick, slow = Toy(2.0, price=1.0, seconds=0.1), Toy(0.0, price=100.0, seconds=10.0)
    result = certify(draws_from(NOISY), 16, [quick, slow], budget=Budget(60.0))
    assert quick.calls == [NUM_PILOTS, 16] and slow.calls == []
    assert result.skipped.endswith(": it would take longer than max_seconds=60")
    assert result.skipped.startswith("Toy(width=0.0")
    # Nobody could tell from its price, but the pilot does.
    slow = Toy(0.0, price=1.0, seconds=10.0)
    result = certify(draws_from(NOISY), 16, [quick, slow], budget=Budget(100.0))
    assert slow.calls == [NUM_PILOTS]
    assert result.lower_method == "Toy" and (result.upper - result.lower).mean() == 2.0
    assert result.skipped.endswith("max_seconds=100")


def test_where_there_is_no_time_at_all_the_trivial_bounds_remain():
    slow = Toy(0.0, seconds=10.0)

    def draw():
        CLOCK.now += 1.0
        return original()

    original = draws_from(NOISY)
    for seconds, calls in ((3.0, []), (30.0, [NUM_PILOTS])):
        slow.calls.clear()
        result = certify(draw, 4, [slow], budget=Budget(seconds)).summary()
        assert slow.calls == calls
        assert (result.lower, result.upper) == (0.0, result.log_order)
        assert result.lower_method == result.upper_method == "trivial"
        assert f"max_seconds={seconds:g}" in result.skipped


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_budgets_are_positive(seconds):
    problem = one_hidden_layer(3)
    with pytest.raises(ValueError, match="max_seconds must be positive or None"):
        pp.mutual_information(problem.guide(), *problem.args, max_seconds=seconds, progress=False)


@pytest.mark.slow
def test_guides_are_certified_within_a_budget(monkeypatch):
    monkeypatch.undo()
    problem = two_hidden_layers(20, 20)
    guide = problem.guide(init_scale=0.7)
    options = {"num_samples": 4, "max_seconds": 1e-6, "progress": False}
    information = pp.mutual_information(guide, *problem.args, **options)
    elbo = pp.symmetrized_elbo(problem.model, guide, *problem.args, **options)
    for found in (information, elbo.mutual_information):
        assert (found.lower, found.upper) == (0.0, found.log_order)
        assert "max_seconds=1e-06" in found.skipped
    generous = pp.mutual_information(guide, *problem.args, **options | {"max_seconds": 1e3})
    assert generous.lower_method != "trivial" and "max_seconds" not in generous.skipped


NEW_FILE = '''
from dataclasses import dataclass

from pyro_perm.estimators.estimator import Estimator, register_estimator
from pyro_perm.permanent import log_permanent
from pyro_perm.permanent.exact import MAX_SIZE


@register_estimator
@dataclass(frozen=True)
class Permanent(Estimator):
    """The exact sum over one group, up to the size that permanents allow."""

    is_lower_bound = True
    is_upper_bound = True

    def serves(self, density):
        groups = density.symmetry.groups
        fits = len(groups) == 1 and max(groups.values()) <= MAX_SIZE
        return None if fits else "sums over one group of at most 20 units: give Exact()"

    def cost(self, density):
        return 1.0

    @classmethod
    def candidates(cls, density):
        return [] if cls().serves(density) else [cls()]

    def log_ratio(self, density):
        ((group, sites),) = density.symmetry.spec.items()
        pairs = density.unit_pairs(group, sites)
        identity = pairs.diagonal(dim1=-2, dim2=-1).sum(-1)
        return log_permanent(pairs) - identity - density.symmetry.log_order
'''


def test_a_new_estimator_is_one_file_and_one_line_and_wins_where_it_is_better(tmp_path):
    density = one_layer(18, 2, 0.2, 1)
    assert certify(draws_from(density), 4).lower_method == "importance sampling"
    (tmp_path / "permanent.py").write_text(NEW_FILE)
    spec = spec_from_file_location("permanent", tmp_path / "permanent.py")
    spec.loader.exec_module(module_from_spec(spec))  # The one line is its import.
    result = certify(draws_from(density), 4).summary()
    assert result.lower_method == result.upper_method == "Permanent"
    assert result.lower == result.upper
    assert certify(draws_from(one_layer(30, 2, 0.2, 1)), 4).lower_method == "importance sampling"


@pytest.mark.slow
def test_many_small_coupled_layers_are_not_annealed_where_sampling_is_enough():
    """Eight tanh layers of six units: annealing took most of the time, and gained nothing."""
    spec = {f"g{i}": {f"w{i}": 0, f"w{i + 1}": 1} for i in range(8)}
    density = synthetic(spec, {f"w{i}": (6, 6) for i in range(9)}, 0.6, 1)
    result = certify(draws_from(density), 8).summary()
    assert result.lower_method == result.upper_method == "importance sampling"
    assert "AnnealedImportanceSampled(num_steps=100" in result.skipped
    assert "AnnealedImportanceSampled(num_steps=400" in result.skipped
    assert abs(result.upper - result.lower) < result.upper_standard_error
