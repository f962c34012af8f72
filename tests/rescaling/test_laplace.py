"""Sharp integrands are expanded only where the expansion is as accurate as asked for."""

import numpy as np
import pytest

from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._laplace import are_sharp
from pyro_perm.rescaling._modes import find_modes
from pyro_perm.rescaling._quadrature import integrate


def integrands(a, num=20_000):
    """Flat and sharp ones, with one mode or two; half of them with equal ends."""
    rng = np.random.default_rng(abs(a))
    squares = np.exp(rng.uniform(-3, 11, (2, num)))
    squares[1, : num // 2] = squares[0, : num // 2]
    spread = np.exp(rng.uniform(-4, 1, num))
    crosses = squares * (1 + spread * rng.standard_normal((2, num)))
    crosses[:, ::3] = 0.0
    return Exponent(squares, crosses, float(a))


@pytest.mark.parametrize("a", [0, 3, -40, 300, -2000])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_expansion_is_as_accurate_as_asked_for(a, tolerance):
    with np.errstate(all="ignore"):
        everyone = integrands(a)
        sharp = are_sharp(find_modes(everyone.balance()[0])[1], tolerance)
    some = everyone.take(sharp)
    assert len(some) > 100
    value, means = integrate(some, tolerance)
    # So accurate that nothing is expanded; rounding of the terms of h comes on top.
    expected, expected_means = integrate(some, 1e-14)
    rounding = 1e-13 * np.abs(some.squares).sum(0) + 1e-13 * np.abs(expected)
    assert (np.abs(value - expected) < tolerance + rounding).all()
    assert (np.abs(means / expected_means - 1) < 7 * tolerance + 1e-11).all()


def test_integrands_with_two_sharp_modes_are_not_expanded():
    """``h = -A cosh 2t + 2 B cosh t`` has two of the same height where ``B > 2 A``."""
    A = np.exp(np.linspace(3, 11, 200))
    two = Exponent(np.stack([A, A]), np.stack([5 * A, 5 * A]), 0.0)
    _, moved = find_modes(two)
    assert (moved.curvature() > 10 * A).all()
    assert not are_sharp(moved, 1e-3).any()
