import dense_grid
import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from pyro_perm.rescaling import Degrees, UnitEntries, sample_along_orbits, sample_log_scales

NUM = 4000
ENOUGH = 1e-3


def draws(*coefficients, a):
    return sample_log_scales(*(torch.full((NUM,), float(x)) for x in coefficients), a)


@pytest.mark.parametrize(
    ("order", "A", "C"),
    [
        (0.0, 1.0, 1.0),
        (0.0, 1e-2, 2e-2),
        (0.0, 1e4, 1e4),
        (0.5, 1.0, 1e-4),
        (0.5, 1e-6, 1e6),
        (-0.5, 1e-3, 1.0),
        (5.0, 11.0, 0.3),
        (-20.0, 3.0, 50.0),
    ],
)
def test_squared_scales_are_generalized_inverse_gaussian(order, A, C):
    squares = (2 * draws(A, 0, C, 0, a=2 * order)).exp() * (A / C) ** 0.5
    law = stats.geninvgauss(order, (A * C) ** 0.5)
    assert stats.kstest(squares.numpy(), law.cdf).pvalue > ENOUGH


@pytest.mark.parametrize(
    "case",
    [
        (2.0, 5.0, 1.0, 4.0, 3.0),
        (0.1, 3.0, 0.1, 3.0, 0.0),  # two modes in one window
        (1.0, -3.0, 2.0, 6.0, 5.0),
        (1e-6, 1e-4, 1e-6, 1e-4, 0.0),  # a plateau
    ],
)
def test_draws_follow_the_density_along_the_orbit(case):
    *sums, a = case
    t, heights = dense_grid.grid(*case)
    cumulative = np.exp(heights - heights.max()).cumsum()
    cumulative /= cumulative[-1]
    sample = draws(*sums, a=a).numpy()
    assert stats.kstest(sample, lambda x: np.interp(x, t, cumulative)).pvalue > ENOUGH


def test_distant_sharp_modes_share_the_draws():
    sample = draws(1e4, 1e6, 1e4, 1e6, a=0)
    right = (sample > 0).sum().item()
    assert stats.binomtest(right, NUM).pvalue > ENOUGH
    assert_close(sample.abs().std(), torch.tensor(1e-4), rtol=0.05, atol=0)


def test_draws_do_not_depend_on_the_place_on_the_orbit():
    """Rescaled units follow one law, wherever on its orbit each has been."""
    degrees = Degrees.of((1, 1, -1))
    unit = torch.tensor([1.0, -2.0, 0.5]).expand(NUM, 3)
    start = degrees.rescale(unit, torch.linspace(-4, 4, NUM))
    prior = torch.zeros(3), torch.tensor([1.0, 0.5, 2.0])
    moved = [
        degrees.rescale(values, sample_along_orbits(UnitEntries(values, *prior), degrees))
        for values in (unit, start)
    ]
    assert stats.ks_2samp(moved[0][:, 0].numpy(), moved[1][:, 0].numpy()).pvalue > ENOUGH
    for values in moved:
        assert_close(values[:, 0] * values[:, 2], torch.full((NUM,), 0.5))


def test_draws_of_a_generator_can_be_repeated():
    sums = [torch.ones(5), torch.zeros(5), torch.ones(5), torch.zeros(5)]
    first, second = (
        sample_log_scales(*sums, 1, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert sample_log_scales(*(x[:0] for x in sums), 1).shape == (0,)


def test_orbits_without_a_law_are_refused():
    zero, one = torch.zeros(1), torch.ones(1)
    with pytest.raises(ValueError, match="diverges"):
        sample_log_scales(zero, zero, one, zero, 1)
