"""What every estimator keeps, whatever else it does: a new one is a line in ``EXAMPLES``.

What an estimator does not serve it refuses, with the reason that it declares.
"""

import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from densities import draw, mean_and_error, one_layer, two_layers
from marks import on_each, slow
from problems import PROBLEMS, SIGNED_PROBLEMS, one_hidden_layer, two_hidden_layers
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal

import pyro_perm as pp
from pyro_perm.density.base_guides import read_density


@dataclass(frozen=True)
class Example:
    """An estimator with settings that are quick, and how far from the truth its bounds may lie."""

    estimator: pp.Estimator
    tightness: float = float("inf")

    def __str__(self):
        return type(self.estimator).__name__


EXAMPLES = [
    Example(pp.Bethe()),
    Example(pp.InfoNCE(num_permutations=8)),
    Example(pp.LeaveOneOut(num_permutations=8)),
    Example(pp.Exact(), tightness=1e-9),
    Example(pp.ImportanceSampled(num_permutations=16), tightness=0.1),
    Example(pp.SampledChainRule(num_permutations=16)),
    Example(pp.AnnealedImportanceSampled(num_steps=10, num_chains=4), tightness=0.2),
]

ONE_UNIT = one_hidden_layer(1)
ONE_AND_TWO_LAYERS = [one_hidden_layer(4), two_hidden_layers(3, 4)]
NUM_PARTICLES = 100
_DRAWN = {}

on_one_and_two_layers = pytest.mark.parametrize(
    "problem",
    [ONE_AND_TWO_LAYERS[0], *slow(ONE_AND_TWO_LAYERS[1])],
    ids=str,
)
on_every_problem = on_each([*PROBLEMS, *SIGNED_PROBLEMS])


def drawn(problem):
    """Draws of a problem's guide, and the exact information at each of them."""
    if id(problem) not in _DRAWN:
        with torch.no_grad():
            density = draw(problem, num_particles=NUM_PARTICLES)[2]
            _DRAWN[id(problem)] = problem, density, -pp.Exact().log_ratio(density)
    return _DRAWN[id(problem)][1:]


def jointly_drawn():
    problem = ONE_AND_TWO_LAYERS[0]
    guide = AutoMultivariateNormal(problem.model, init_loc_fn=pp.init_to_fan_in)
    with poutine.trace() as tracer:
        guide(*problem.args)
    return read_density(tracer.trace.nodes, drawn(problem)[0].symmetry)


DENSITIES = {
    "one layer of 40": lambda: one_layer(40, 2, 0.3, 2),
    "two layers of 20": lambda: two_layers(20, 2, 0.3, 2),
    "drawn jointly": jointly_drawn,
} | {str(problem): lambda problem=problem: drawn(problem)[0] for problem in SIGNED_PROBLEMS}


def changed(density, change):
    """The density with a function applied to its values, locs and scales."""
    kinds = {kind: change(getattr(density, kind)) for kind in ("values", "locs", "scales")}
    return replace(density, **kinds)


def seeded(function, *args):
    torch.manual_seed(0)
    return function(*args)


def assert_same(found, expected):
    """Equal, up to the noise of an average over the particles."""
    mean, error = mean_and_error(found - expected)
    assert abs(mean) <= 4 * error + 1e-6
    if error < 1e-6:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class EstimatorContract:
    """Inherited by the tests of all estimators, each an ``example``."""

    @on_every_problem
    def test_bounds_lie_on_their_side_of_the_truth(self, example, problem):
        estimator, (density, exact) = example.estimator, drawn(problem)
        if estimator.serves(density):
            return
        lower, upper = estimator.bounds(density)
        gaps = [] if lower is None else [exact - lower]
        gaps += [] if upper is None else [upper - exact]
        assert bool(gaps) or not (estimator.is_lower_bound or estimator.is_upper_bound)
        for gap in gaps:
            mean, error = mean_and_error(gap)
            assert -4 * error - 1e-9 <= mean <= example.tightness

    @on_one_and_two_layers
    def test_what_is_declared_of_the_estimate_is_what_its_bounds_say(self, example, problem):
        estimator, (density, _) = example.estimator, drawn(problem)
        information, bounds = -estimator.log_ratio(density), estimator.bounds(density)
        if estimator.is_lower_bound:
            assert_same(bounds.lower, information)
        if estimator.is_upper_bound:
            assert_same(bounds.upper, information)

    @on_one_and_two_layers
    def test_random_numbers_are_drawn_unless_it_says_that_none_are(self, example, problem):
        density, _ = drawn(problem)
        before = torch.get_rng_state()
        example.estimator.log_ratio(density)
        assert torch.equal(torch.get_rng_state(), before) == example.estimator.is_deterministic

    @pytest.mark.parametrize("name", DENSITIES)
    def test_what_is_not_served_is_refused_with_the_reason_and_a_fix(self, example, name):
        estimator, density = example.estimator, DENSITIES[name]()
        reason = estimator.serves(density)
        for method in (estimator.log_ratio, estimator.bounds):
            if reason is None:
                method(density)
                continue
            with pytest.raises(ValueError if density.factorizes else TypeError) as caught:
                method(density)
            assert str(caught.value) == f"{estimator} {reason}"
            assert any(fix in reason for fix in ("give ", "leave out ", "evaluate with "))

    @on_one_and_two_layers
    def test_there_is_an_estimate_for_every_particle_in_double_precision(self, example, problem):
        whole, _ = drawn(problem)
        for batch in ((), (2, 3), (2, 1)):
            num = torch.Size(batch).numel()
            values = {
                site: value[:num].reshape(*batch, *value.shape[1:])
                for site, value in whole.values.items()
            }
            density = replace(whole, values=values, batch_shape=torch.Size(batch))
            log_ratio = example.estimator.log_ratio(density)
            assert log_ratio.shape == batch and log_ratio.dtype == torch.float64
            assert log_ratio.isfinite().all()
            for bound in example.estimator.bounds(density):
                assert bound is None or (bound.shape == batch and bound.dtype == torch.float64)

    @on_one_and_two_layers
    def test_particles_do_not_see_each_other(self, example, problem):
        whole, _ = drawn(problem)
        if not example.estimator.is_deterministic:
            return
        for particle, expected in enumerate(example.estimator.log_ratio(whole)[:3]):
            values = {site: value[particle] for site, value in whole.values.items()}
            alone = replace(whole, values=values, batch_shape=torch.Size())
            torch.testing.assert_close(example.estimator.log_ratio(alone), expected)

    @on_each(PROBLEMS)
    def test_nothing_changes_if_all_units_change_places_with_their_factors(self, example, problem):
        estimator, (density, _) = example.estimator, drawn(problem)
        symmetry = density.symmetry
        elsewhere = symmetry.sample()
        relabelled = changed(density, lambda tensors: symmetry.apply(elsewhere, tensors))
        assert_same(estimator.log_ratio(relabelled), estimator.log_ratio(density))

    @on_one_and_two_layers
    def test_single_precision_is_summed_in_double(self, example, problem):
        density, _ = drawn(problem)
        single = changed(density, lambda tensors: {s: x.float() for s, x in tensors.items()})
        estimator = example.estimator
        found, expected = (seeded(estimator.log_ratio, each) for each in (single, density))
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)

    @pytest.mark.parametrize("problem", ONE_AND_TWO_LAYERS, ids=str)
    def test_the_gradient_is_right_or_refused(self, example, problem):
        density, _ = drawn(problem)
        density = replace(
            density, values={s: v[0] for s, v in density.values.items()}, batch_shape=torch.Size()
        )
        leaves = []

        def leaf(tensors):
            new = {site: tensor.clone().requires_grad_() for site, tensor in tensors.items()}
            leaves.extend(new.values())
            return new

        estimator, density = example.estimator, changed(density, leaf)
        log_ratio = seeded(estimator.log_ratio, density)
        assert log_ratio.requires_grad  # Never a silent constant.
        try:
            gradients = torch.autograd.grad(log_ratio, leaves)
        except ValueError as refusal:
            assert str(refusal) == f"{estimator} has no gradient: train with Bethe()"
            return
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().max() > 1e-6 for gradient in gradients)
        if not estimator.is_deterministic:
            return  # Which permutations are drawn is a step function of the parameters.
        step, directions = 1e-6, [torch.randn_like(x) for x in leaves]
        ends = []
        for sign in (step, -step):
            with torch.no_grad():
                for x, direction in zip(leaves, directions, strict=True):
                    x += sign * direction
                ends.append(estimator.log_ratio(density))
                for x, direction in zip(leaves, directions, strict=True):
                    x -= sign * direction
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-4, atol=1e-6)

    def test_one_unit_has_nothing_to_tell(self, example):
        density, _ = drawn(ONE_UNIT)
        zeros = torch.zeros(NUM_PARTICLES)
        torch.testing.assert_close(example.estimator.log_ratio(density), zeros)
        for bound in example.estimator.bounds(density):
            assert bound is None or torch.allclose(bound, zeros)

    def test_cost_is_positive_and_grows_with_the_width(self, example):
        for layers in (one_layer, two_layers):
            costs = [example.estimator.cost(layers(n, 3, 0.5, 1)) for n in (3, 6, 12)]
            assert 0 < costs[0] < costs[1] < costs[2] < float("inf")

    def test_settings_that_compete_are_served_and_bound_something(self, example):
        kind = type(example.estimator)
        for name in ("one layer of 40", "two layers of 20"):
            density = DENSITIES[name]()
            elsewhere = replace(density, values={s: 0 * v for s, v in density.values.items()})
            settings = kind.candidates(density)
            assert settings == kind.candidates(elsewhere)  # Whatever was drawn.
            for estimator in settings:
                assert isinstance(estimator, kind) and estimator.serves(density) is None
                assert estimator.is_lower_bound or estimator.is_upper_bound

    def test_it_is_a_value(self, example):
        estimator = example.estimator
        copied = pickle.loads(pickle.dumps(estimator))
        assert copied == estimator and hash(copied) == hash(estimator)
        assert eval(repr(estimator), vars(pp)) == estimator
        assert estimator.for_one_guide() == estimator
