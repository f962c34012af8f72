r"""The symmetrized guide of one unit, ``q~ = p q_Q / p_Q``, over the whole space of its weights.

All integrals are trapezoidal sums in polar coordinates of the incoming weights and logarithms of
both ends' sizes, where integrands are smooth and vanish fast on all sides.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from marks import slow
from torch import Tensor
from torch.distributions import Normal
from torch.testing import assert_close

from pyro_perm.rescaling import Degrees, UnitEntries, log_orbit_mass


@dataclass(frozen=True)
class Unit:
    """Log-densities of a unit on a grid of weights.

    Attributes:
        weights: the points, shape ``(points, width)``.
        volumes: what each stands for, shape ``(points,)``, as all others.
        log_prior: of the weights.
        log_guide: likewise.
        log_ratio: guide over prior, of the weights' orbits.
    """

    weights: Tensor
    volumes: Tensor
    log_prior: Tensor
    log_guide: Tensor
    log_ratio: Tensor

    @property
    def log_symmetrized(self) -> Tensor:
        return self.log_prior + self.log_ratio

    def mean(self, log_density: Tensor, function: Tensor | float = 1.0) -> Tensor:
        return (self.volumes * log_density.exp() * function).sum()


LOCS = torch.tensor([0.5, -0.4, 0.6], dtype=torch.float64)
SCALES = torch.tensor([0.7, 0.8, 0.75], dtype=torch.float64)
PRIOR_SCALES = torch.tensor([1.0, 0.9, 1.0], dtype=torch.float64)


def unit_at(weights: Tensor, volumes: Tensor) -> Unit:
    width = weights.shape[-1]
    degrees = Degrees.of((1,) * (width - 1) + (-1,))
    laws = Normal(torch.zeros(width), PRIOR_SCALES[-width:]), Normal(LOCS[-width:], SCALES[-width:])
    points = [law.log_prob(weights).sum(-1) for law in laws]
    masses = [
        log_orbit_mass(UnitEntries(weights, law.mean, law.stddev), degrees, tolerance=1e-10)
        for law in laws
    ]
    log_ratio = points[1] + masses[1] - points[0] - masses[0]
    return Unit(weights, volumes, *points, log_ratio)


def grid(num_incoming: int) -> tuple[Tensor, Tensor]:
    """Points and volumes, for one or two incoming weights and an outgoing one."""
    step = 0.1 if num_incoming == 1 else 0.2
    log_in = torch.arange(-20.0 / num_incoming, 2.0, step)
    log_out = torch.arange(-20.0, 2.0, step)
    angles = torch.arange(2 if num_incoming == 1 else 28) * (2 * math.pi)
    angles /= len(angles)
    turn = 1.0 if num_incoming == 1 else angles[1]
    angle, log_in, sign, log_out = torch.cartesian_prod(
        angles, log_in, torch.tensor([-1.0, 1.0]), log_out
    ).unbind(-1)
    incoming = torch.stack([angle.cos(), angle.sin()], -1)[:, :num_incoming]
    incoming = incoming * log_in.exp().unsqueeze(-1)
    outgoing = (sign * log_out.exp()).unsqueeze(-1)
    volumes = turn * step**2 * (num_incoming * log_in + log_out).exp()
    return torch.cat([incoming, outgoing], -1), volumes


@pytest.fixture(scope="module", params=slow(1, 2))
def unit(request) -> Unit:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield unit_at(*grid(request.param))
    torch.set_default_dtype(default)


def test_integrates_to_one(unit):
    one = torch.tensor(1.0)
    assert_close(unit.mean(unit.log_prior), one, rtol=0, atol=1e-8)
    assert_close(unit.mean(unit.log_symmetrized), one, rtol=0, atol=1e-8)


def test_divergence_is_that_of_the_laws_of_orbits(unit):
    """``KL(q~ || p) = KL(q_Q || p_Q) <= KL(q || p)``, whichever guide the orbits are drawn from."""
    under_guide = unit.mean(unit.log_guide, unit.log_ratio)
    under_symmetrized = unit.mean(unit.log_symmetrized, unit.log_ratio)
    assert_close(under_guide, under_symmetrized, rtol=0, atol=1e-7)
    assert under_guide < unit.mean(unit.log_guide, unit.log_guide - unit.log_prior) - 0.05


@pytest.mark.parametrize("power", [1, 2])
def test_what_the_network_sees_keeps_its_law(unit, power):
    """Moments of products of incoming and outgoing weights are those of the guide."""
    seen = (unit.weights[:, 0] * unit.weights[:, -1]) ** power
    under_guide = unit.mean(unit.log_guide, seen)
    assert_close(unit.mean(unit.log_symmetrized, seen), under_guide, rtol=0, atol=1e-7)


def test_ratio_of_orbits_has_mean_one_under_the_prior():
    unit = unit_at(torch.randn(100_000, 3) * PRIOR_SCALES, torch.ones(()))
    ratio = unit.log_ratio.exp()
    error = ratio.std() / len(ratio) ** 0.5
    assert abs(ratio.mean() - 1) < 4 * error
    assert error < 0.02
