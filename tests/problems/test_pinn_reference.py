"""Solutions without a closed form against methods of another kind: Chebyshev polynomials, SciPy's integrators.

The problems' own are a quadrature and Fourier series with exponential time steps. Everything agrees to 1e-8 in the
largest difference; solutions are of size 1.
"""

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from latephase.problems.pinn import reference

AGREED = 1e-8
TIMES = np.array([0.01, 0.1, 0.3, 0.5, 1.0])
STORED = np.rint(TIMES / reference.INTERVAL).astype(int)


def chebyshev(n):
    """Points on 0 <= x <= 1 and the matrix of first derivatives there."""
    z = np.cos(np.pi * np.arange(n + 1) / n)
    c = np.r_[2, np.ones(n - 1), 2] * (-1.0) ** np.arange(n + 1)
    matrix = np.outer(c, 1 / c) / (z[:, None] - z + np.eye(n + 1))
    return (1 + z) / 2, 2 * (matrix - np.diag(matrix.sum(axis=1)))


def stiff(change, jacobian, start, until=1.0):
    """Values at `TIMES` by Radau's implicit method, [times, points]."""
    options = {"rtol": 1e-10, "atol": 1e-12, "t_eval": TIMES[until >= TIMES]}
    found = solve_ivp(change, (0, until), start, method="Radau", jac=jacobian, **options)
    assert found.success
    return found.y.T


def test_burgers_by_chebyshev_polynomials():
    # u is odd, so that half of the interval is enough, with the shock at its end, where the points are dense.
    viscosity = 0.01 / np.pi
    x, first = chebyshev(160)
    inner = slice(1, -1)
    second = (first @ first)[inner, inner]
    first, x = first[inner, inner], x[inner]
    found = stiff(
        lambda t, u: viscosity * (second @ u) - u * (first @ u),
        lambda t, u: viscosity * second - np.diag(first @ u) - u[:, None] * first,
        -np.sin(np.pi * x),
    )
    expected = reference.burgers(x, TIMES, viscosity)
    np.testing.assert_allclose(found, expected, rtol=0, atol=AGREED)
    assert np.abs(np.diff(expected[-1])).max() > 0.05  # the shock is there


def test_burgers_at_the_beginning_and_by_symmetry():
    x = np.linspace(-1, 1, 41)
    u = reference.burgers(x, np.array([0.0, 1e-9, 0.7]), 0.01 / np.pi)
    np.testing.assert_allclose(u[0], -np.sin(np.pi * x), rtol=0, atol=1e-15)
    # u_t is at most pi / 2 + 0.01 pi at first.
    np.testing.assert_allclose(u[1], u[0], rtol=0, atol=2e-9)
    np.testing.assert_allclose(u, -u[:, ::-1], rtol=0, atol=1e-14)


# Between t = 0.5 and 1 the edges become so sharp that polynomials need many points to follow them.
@pytest.mark.parametrize(("points", "until"), [(200, 0.5), pytest.param(640, 1.0, marks=pytest.mark.slow)])
def test_allen_cahn_by_chebyshev_polynomials(points, until):
    # u is even about 0 and, being periodic, about 1: on half of the interval its slope is zero at both ends.
    x, first = chebyshev(points)
    second, ends, inner = first @ first, [0, -1], slice(1, -1)
    at_ends = -np.linalg.solve(first[ends][:, ends], first[ends, inner])
    linear = 1e-4 * (second[inner, inner] + second[inner][:, ends] @ at_ends)
    x = x[inner]
    found = stiff(
        lambda t, u: linear @ u + 5 * u - 5 * u**3,
        lambda t, u: linear + np.diag(5 - 15 * u**2),
        x**2 * np.cos(np.pi * x),
        until,
    )
    expected = reference.on_grid(reference.allen_cahn()[STORED[until >= TIMES]], x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=AGREED)
    assert expected[-1].min() < -0.99


def test_coefficients_of_the_kinked_start():
    k = np.array([0, 1, 2, 7])
    expected = [quad(lambda x, k=k: x * x * np.cos(np.pi * x) * np.cos(np.pi * k * x) / 2, -1, 1)[0] for k in k]
    np.testing.assert_allclose(reference.kinked_start(k), expected, rtol=0, atol=1e-14)
    # As many coefficients as the solution has leave a tail of 2 / (pi k)^2 each, twice for k and -k: 4 / (pi^2 1024).
    x = np.linspace(-1, 1, 77)
    start = reference.on_grid(reference.allen_cahn()[:1], x)[0]
    np.testing.assert_allclose(start, x**2 * np.cos(np.pi * x), rtol=0, atol=4e-4)


def explicit_korteweg_de_vries(until):
    """Values at 96 points by an explicit method, from a Fourier series whose products are left aliased."""
    n = 96
    k, x = np.pi * np.fft.rfftfreq(n, 1 / n), 2 * np.arange(n) / n
    k[-1] = 0  # the highest frequency has no odd derivative

    def change(t, u):
        return -np.fft.irfft(0.5j * k * np.fft.rfft(u * u) + 0.0025 * (1j * k) ** 3 * np.fft.rfft(u), n)

    times = TIMES[until >= TIMES]
    found = solve_ivp(change, (0, until), np.cos(np.pi * x), method="DOP853", rtol=1e-11, atol=1e-12, t_eval=times)
    assert found.success
    return found.y.T, reference.on_grid(reference.korteweg_de_vries()[STORED[: len(times)]], x)


@pytest.mark.parametrize("until", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_korteweg_de_vries_by_an_explicit_method(until):
    found, expected = explicit_korteweg_de_vries(until)
    np.testing.assert_allclose(found, expected, rtol=0, atol=AGREED)


def test_korteweg_de_vries_conserves_mass_momentum_and_energy():
    series = reference.korteweg_de_vries()
    x = np.linspace(-1, 1, 512, endpoint=False)
    u = reference.on_grid(series, x)
    u_x = reference.on_grid(1j * np.pi * np.arange(series.shape[1]) * series, x)
    for density, size in ((u, 1.0), (u**2, 0.5), (u**3 / 3 - 0.0025 * u_x**2, 0.0025 * np.pi**2 / 2)):
        means = density.mean(axis=1)
        np.testing.assert_allclose(means, means[0], rtol=0, atol=AGREED * size)
    assert u[-1].max() > 2  # the highest soliton
