import math

import dense_grid
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples
from scipy.special import kve
from torch.testing import assert_close

from pyro_perm.rescaling import log_integral, orbit_integral
from pyro_perm.rescaling._exponent import Exponent
from pyro_perm.rescaling._quadrature import bound, integrate

properties = settings(max_examples=examples(60), deadline=None, derandomize=True, database=None)


@st.composite
def coefficients(draw):
    """Any integrand: flat or sharp, with one mode or two of almost the same height."""
    exponents = st.floats(-6, 6)
    A, C = 10 ** draw(exponents), 10 ** draw(exponents)
    mode_in = draw(st.sampled_from([1, 1, -1])) * 10 ** draw(st.floats(-2, 3))
    mode_out = draw(st.sampled_from([1, 1, -1])) * 10 ** draw(st.floats(-2, 3))
    if draw(st.booleans()):
        mode_out = mode_in + draw(st.floats(-1, 1))
    a = draw(st.sampled_from([-300, -40, -5, -1, 0, 1, 2, 5, 30, 700]))
    return A, mode_in * math.sqrt(A), C, mode_out * math.sqrt(C), a


def tensors(*numbers):
    return [torch.tensor(float(number)) for number in numbers]


@properties
@given(coefficients())
def test_equals_a_dense_grid_within_the_tolerance(case):
    *sums, a = case
    expected = dense_grid.log_integral(*case)
    for tolerance in (1e-5, 1e-8):
        value = orbit_integral(*tensors(*sums), a, tolerance=tolerance).log_integral.item()
        assert abs(value - expected) < tolerance + 1e-11 * abs(expected)


@properties
@given(coefficients())
def test_means_are_those_of_a_dense_grid(case):
    *sums, a = case
    A, B, C, D = tensors(*sums)
    result = orbit_integral(A, B, C, D, a, tolerance=1e-9)
    expected = torch.from_numpy(dense_grid.means(*case))
    terms, expected_terms = (torch.stack([A, B, C, D]) * x for x in (result.means, expected))
    assert_close(terms, expected_terms, rtol=0, atol=1e-6 * (expected_terms.abs().sum() + abs(a)))


@properties
@given(coefficients())
def test_derivatives_cancel_along_the_orbit(case):
    """Integration by parts: the mean of ``h'`` is zero."""
    *sums, a = case
    A, B, C, D = tensors(*sums)
    squares_in, means_in, squares_out, means_out = orbit_integral(
        A, B, C, D, a, tolerance=1e-10
    ).means
    terms = torch.stack([-A * squares_in, B * means_in, C * squares_out, -D * means_out])
    assert abs(terms.sum() + a) < 1e-6 * (terms.abs().sum() + abs(a))


@properties
@given(coefficients(), st.floats(-120, 120))
def test_moves_along_the_orbit_without_overflow(case, shift):
    *sums, a = case
    A, B, C, D = tensors(*sums)
    x = math.exp(shift)
    here = orbit_integral(A, B, C, D, a, tolerance=1e-9).log_integral
    there = orbit_integral(A * x * x, B * x, C / x / x, D / x, a, tolerance=1e-9).log_integral
    assert_close(there + a * shift, here, rtol=1e-10, atol=1e-7)


@properties
@given(coefficients())
def test_bound_is_above_the_integral(case):
    *sums, a = case
    upper = bound(Exponent.of(*tensors(*sums), a)).item()
    value = orbit_integral(*tensors(*sums), a, tolerance=1e-9).log_integral.item()
    assert upper > value - 1e-9 * abs(value)


@pytest.mark.parametrize("a", [-7, -1, 0, 1, 2, 10, 60])
def test_equals_the_bessel_function_where_means_are_zero(a):
    A = torch.logspace(-3, 4, 15)
    C = torch.logspace(3, -2, 15)
    zero = torch.zeros(15)
    product = (A * C).sqrt()
    log_bessel = torch.from_numpy(np.log(kve(a / 2, product.numpy()))) - product
    value = orbit_integral(A, zero, C, zero, a, tolerance=1e-12).log_integral
    assert_close(value, a / 4 * (C / A).log() + log_bessel, rtol=1e-12, atol=1e-10)


def test_incoming_entries_alone_give_a_gamma_function():
    """``int exp(-A e^{2t} / 2 + a t) dt = 2^{a/2-1} Gamma(a/2) A^{-a/2}``."""
    A, zero, a = torch.tensor([0.1, 1.0, 30.0]), torch.zeros(3), 5
    value = orbit_integral(A, zero, zero, zero, a, tolerance=1e-11).log_integral
    expected = (a / 2 - 1) * math.log(2) + math.lgamma(a / 2) - a / 2 * A.log()
    assert_close(value, expected, rtol=0, atol=1e-10)
    mirrored = orbit_integral(zero, zero, A, zero, -a, tolerance=1e-11).log_integral
    assert_close(mirrored, expected, rtol=0, atol=1e-10)


def test_two_distant_sharp_modes_both_count():
    """Laplace's method at both, whose error is that of the curvature's reciprocal."""
    A, B = torch.tensor(1e4), torch.tensor(1e6)
    value = orbit_integral(A, B, A, B, 0, tolerance=1e-9).log_integral.item()
    t = math.log(100.0)
    for _ in range(5):
        slope = -A * math.exp(2 * t) + B * math.exp(t) + A * math.exp(-2 * t) - B * math.exp(-t)
        size = A * (math.exp(2 * t) + math.exp(-2 * t)) - B * (math.exp(t) + math.exp(-t)) / 2
        t += float(slope / (2 * size))
    height = dense_grid.log_exponent(np.array(t), 1e4, 1e6, 1e4, 1e6, 0).item()
    laplace = height + 0.5 * math.log(math.pi / size) + math.log(2)
    assert abs(value - laplace) < 2e-7


def test_many_integrands_at_once_are_as_one_by_one():
    """Also where the second modes of some are about to vanish."""
    generator = torch.Generator().manual_seed(3)
    A, C = (torch.randn(2, 90, 60, generator=generator).mul(2).exp() for _ in range(2))
    B, D = (2 * torch.randn(2, 90, 60, generator=generator) for _ in range(2))
    together = orbit_integral(A, B, C, D, 1, tolerance=1e-10)
    for where in [(0, 0, 0), (0, 77, 59), (1, 13, 39), (1, 89, 59)]:
        alone = orbit_integral(A[where], B[where], C[where], D[where], 1, tolerance=1e-10)
        assert_close(together.log_integral[where], alone.log_integral, rtol=0, atol=1e-9)
        assert_close(together.means[(slice(None), *where)], alone.means, rtol=1e-8, atol=0)


def test_shapes_broadcast_and_single_precision_is_raised():
    A, C = torch.rand(3, 1) + 1, torch.rand(4) + 1
    zero = torch.zeros(())
    result = orbit_integral(A.float(), zero, C.float(), zero, 2)
    assert result.log_integral.shape == (3, 4)
    assert result.means.shape == (4, 3, 4)
    assert result.log_integral.dtype == torch.float64
    assert orbit_integral(A[:0], zero, C, zero, 2).log_integral.shape == (0, 4)


def test_gradient_is_that_of_finite_differences():
    A, C = torch.tensor([0.5, 2.0, 40.0]), torch.tensor([1.0, 0.1, 30.0])
    B, D = torch.tensor([3.0, -1.0, 60.0]), torch.tensor([4.0, 0.3, -5.0])
    inputs = [x.requires_grad_() for x in (A, B, C, D)]
    assert torch.autograd.gradcheck(lambda *x: log_integral(*x, 2, tolerance=1e-11), inputs)


@pytest.mark.parametrize("weight", [torch.ones(()), torch.ones((), requires_grad=True)])
def test_second_derivatives_are_refused(weight):
    A = torch.tensor(1.0, requires_grad=True)
    value = log_integral(A, torch.zeros(()), torch.ones(()), torch.zeros(()), 1) * weight
    (grad,) = torch.autograd.grad(value, A, create_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(grad + A**2, A)


@pytest.mark.parametrize(
    ("sums", "a", "reason"),
    [
        ((0, 0, 1, 1), 0, "incoming entries are all zero"),
        ((0, 0, 1, 1), 2, "incoming entries are all zero"),
        ((1, 1, 0, 0), 0, "outgoing entries are all zero"),
        ((1, 1, 0, 0), -2, "outgoing entries are all zero"),
        ((math.nan, 0, 1, 0), 1, "not numbers"),
        ((1, math.nan, 1, 0), 1, "not numbers"),
        ((-1, 0, 1, 0), 1, "cannot be negative"),
        ((math.inf, 0, 1, 0), 1, "leaves the range"),
    ],
)
def test_what_has_no_integral_is_refused(sums, a, reason):
    pair = [torch.stack([torch.ones(()), x]) for x in tensors(*sums)]
    with pytest.raises(ValueError, match=reason):
        orbit_integral(*pair, a)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1.0])
def test_tolerances_that_mean_nothing_are_refused(tolerance):
    one = torch.ones(())
    with pytest.raises(ValueError, match="tolerance"):
        orbit_integral(one, one, one, one, 1, tolerance=tolerance)


def test_tensors_of_other_devices_take_the_same_way_as_arrays():
    """Integrals on the CPU are those of numpy arrays; tensors serve everywhere."""
    generator = torch.Generator().manual_seed(5)
    squares = torch.randn(2, 300, generator=generator).mul(2).exp()
    crosses = 3 * torch.randn(2, 300, generator=generator)
    arrays = integrate(Exponent(squares.numpy(), crosses.numpy(), 1.0), 1e-8)
    tensors = integrate(Exponent(squares, crosses, 1.0), 1e-8)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert_close(torch.from_numpy(array), tensor, rtol=1e-10, atol=1e-10)
