"""Importance sampling over permutations: normalized, equivariant, both bounds, tight."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from densities import draw, mean_and_error, one_layer, two_layers
from marks import on_each, slow
from problems import PROBLEMS, one_hidden_layer, recurrent, two_hidden_layers

import pyro_perm as pp
from pyro_perm.density.density import Density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators._proposal import fit_proposals
from pyro_perm.estimators._terms import lower_terms
from pyro_perm.permanent import log_permanent
from pyro_perm.permanent.row_by_row import sample_rescaled


def all_permutations(size):
    return torch.tensor(list(itertools.permutations(range(size))))


@pytest.mark.parametrize(
    "problem", [one_hidden_layer(5), two_hidden_layers(4, 5), recurrent(5)], ids=str
)
def test_proposals_follow_a_relabelling_of_w(problem):
    """The proposal at ``h w`` draws ``g`` as often as the proposal at ``w`` draws ``g h``."""
    _, _, density = draw(problem, num_particles=3)
    symmetry = density.symmetry
    h = symmetry.sample((1,))
    relabelled = replace(
        density, values=symmetry.apply({k: p[0] for k, p in h.items()}, density.values)
    )
    g = symmetry.sample((6, 3))
    gh = symmetry.compose(g, {k: p.expand(6, 3, -1) for k, p in h.items()})
    torch.testing.assert_close(
        density.log_ratio(gh),
        relabelled.log_ratio(g) + density.log_ratio({k: p.expand(1, 3, -1) for k, p in h.items()}),
    )
    pairs = zip(fit_proposals(density), fit_proposals(relabelled), strict=True)
    for number, (proposal, of_relabelled) in enumerate(pairs):
        expected, found = proposal.draw(0, gh)[1], of_relabelled.draw(0, g)[1]
        assert expected.std(0).min() > 0.01, number
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@on_each(PROBLEMS)
def test_barber_agakov_lies_below_and_more_draws_are_tighter(problem):
    _, _, density = draw(problem, num_particles=100)
    exact = -pp.Exact().log_ratio(density)
    none = pp.ImportanceSampled(0).bounds(density)
    assert none.upper is None
    gap, error = mean_and_error(exact - none.lower)
    assert gap >= -4 * error - 1e-9
    fewer, more = (exact + pp.ImportanceSampled(k).log_ratio(density) for k in (0, 32))
    assert more.mean() <= fewer.mean() + 4 * (more - fewer).std() / 10 + 1e-9


@pytest.mark.parametrize("loc_scale", [0.0, 0.2, 0.8, 1.6])
def test_one_layer_of_a_hundred_units_is_within_four_nats(loc_scale):
    density = one_layer(100, 5, loc_scale, 4)
    bounds = pp.ImportanceSampled(8).bounds(density)
    assert -0.5 <= (bounds.upper - bounds.lower).mean() <= 4.0


def test_separated_layers_are_found_without_looking_at_the_truth():
    density = two_layers(20, 2, 0.8, 4)
    bounds = pp.ImportanceSampled(16).bounds(density)
    order = density.symmetry.log_order
    torch.testing.assert_close(bounds.lower, torch.full((4,), order), rtol=0, atol=0.5)
    torch.testing.assert_close(bounds.upper, torch.full((4,), order), rtol=0, atol=0.5)
    # The first layer alone tells its units apart by far less.
    assert (pp.SampledChainRule(16).bounds(density).lower < order - 5).all()


@pytest.mark.parametrize(
    "estimator", [*slow(pp.ImportanceSampled(6)), pp.SampledChainRule(6)], ids=str
)
def test_gradient_is_that_of_the_weights(estimator, monkeypatch):
    _, _, density = draw(two_hidden_layers(2, 3))
    frozen = []
    original = sample_rescaled

    def recall(*args):
        frozen.append(original(*args)) if recording else None
        return frozen[-1] if recording else frozen[next(position)]

    for module in ("_proposal", "sampled_chain_rule"):
        monkeypatch.setattr(f"pyro_perm.estimators.{module}.sample_rescaled", recall)
    leaves = [
        {s: t.detach() for s, t in tensors.items()}
        for tensors in (density.values, density.locs, density.scales)
    ]

    def log_ratio(*tensors):
        nonlocal position
        position = itertools.count()
        values, locs, scales = (
            {**part, "w2": tensor} for part, tensor in zip(leaves, tensors, strict=True)
        )
        changed = FactorizedDensity(density.symmetry, values, locs, scales, torch.Size())
        return estimator.log_ratio(changed)

    position, recording = itertools.count(), True
    inputs = [part["w2"].clone().requires_grad_() for part in leaves]
    log_ratio(*inputs)
    recording = False
    if isinstance(estimator, pp.ImportanceSampled):
        # The choice between proposals is a step function of the inputs, and fitting them is slow.
        monkeypatch.setattr("pyro_perm.estimators._proposal._SWEEPS", 1)
        monkeypatch.setattr("pyro_perm.estimators._proposal._CAUTION", math.inf)
    assert torch.autograd.gradcheck(log_ratio, inputs)


def test_the_chain_rule_has_no_upper_bound_where_a_group_is_on_two_axes_of_one_site():
    _, _, density = draw(recurrent(), num_particles=3)
    assert pp.SampledChainRule(16).bounds(density).upper is None


def test_chain_rule_certifies_the_sum_of_its_permanents():
    density = two_layers(7, 3, 0.4, 300)
    total = 0.0
    for term in lower_terms(density.symmetry):
        pairs = density.unit_pairs(*term)
        total = (
            total + math.lgamma(8) + pairs.diagonal(dim1=-2, dim2=-1).sum(-1) - log_permanent(pairs)
        )
    gap, error = mean_and_error(total - pp.SampledChainRule(32).bounds(density).lower)
    assert -4 * error <= gap <= 0.05


@pytest.mark.slow
def test_orders_of_the_groups_do_not_matter_to_the_bounds():
    one_way = two_layers(6, 3, 0.3, 100)
    spec = dict(reversed(one_way.symmetry.spec.items()))
    shapes = {site: loc.shape for site, loc in one_way.locs.items()}
    other_way = replace(one_way, symmetry=pp.PermutationSymmetry(spec, shapes=shapes).group)
    one, other = (pp.ImportanceSampled(32).bounds(d) for d in (one_way, other_way))
    for lower, upper in ((one.lower, other.upper), (other.lower, one.upper)):
        gap, error = mean_and_error(upper - lower)
        assert gap >= -4 * error


@dataclass(frozen=True)
class EquicorrelatedDensity(Density):
    """Entries of ``w`` with correlation ``rho``: unit pairs are only those of the marginals."""

    factorizes: ClassVar[bool] = False

    rho: float = 0.5

    def log_ratio(self, permutations):
        moved = self.symmetry.apply(permutations, self.values)["w"]
        return self._log_density(moved) - self._log_density(self.values["w"])

    def _log_density(self, w):
        z = ((w - self.locs["w"]) / self.scales["w"]).flatten(-2)
        n = z.shape[-1]
        shared = self.rho / (1 + (n - 1) * self.rho)
        return -0.5 * (z.square().sum(-1) - shared * z.sum(-1).square()) / (1 - self.rho)


def test_any_base_with_a_density_is_bounded():
    torch.manual_seed(0)
    n, d, rho, num = 5, 2, 0.5, 500
    symmetry = pp.PermutationSymmetry({"hidden": {"w": 0}}, shapes={"w": (n, d)})
    loc, scale = 0.8 * torch.randn(n, d), 0.5 + torch.rand(n, d)
    z = rho**0.5 * torch.randn(num, 1, 1) + (1 - rho) ** 0.5 * torch.randn(num, n, d)
    density = EquicorrelatedDensity(
        symmetry.group, {"w": loc + scale * z}, {"w": loc}, {"w": scale}, torch.Size([num]), rho=rho
    )
    everything = all_permutations(n).unsqueeze(1).expand(-1, num, -1)
    exact = symmetry.log_order - density.log_ratio({"hidden": everything}).logsumexp(0)
    bounds = pp.ImportanceSampled(32).bounds(density)
    below, error_below = mean_and_error(bounds.lower - exact)
    above, error_above = mean_and_error(bounds.upper - exact)
    assert -0.2 <= below <= 4 * error_below
    assert -4 * error_above <= above <= 0.2


@pytest.mark.parametrize("number", [-1, 2.5, "8"])
def test_bad_counts_are_refused(number):
    with pytest.raises(ValueError, match="num_permutations must be an int of at least 0"):
        pp.ImportanceSampled(number)
    with pytest.raises(ValueError, match="num_permutations must be a positive int"):
        pp.SampledChainRule(number)
