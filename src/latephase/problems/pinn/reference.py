"""Solutions of equations that have no closed form, by spectral methods, to nine digits.

Burgers' equation by the transformation of Cole and Hopf. The periodic equations of Allen and Cahn and of Korteweg and
de Vries as Fourier series, in time by the fourth-order exponential scheme of Cox and Matthews (2002), with its
coefficients by contour integrals as in Kassam and Trefethen (2005, "Fourth-Order Time-Stepping for Stiff PDEs").
Products are formed on so many points that no frequency is taken for another.
"""

import functools
from collections.abc import Callable

import numpy as np

INTERVAL = 0.01
"""Between the times at which a solution is kept."""
INTERVALS = 100
"""Up to t = 1."""
AROUND_ZERO = 32
"""Points of the contour integrals, which are precise to rounding from about 20."""
GAUSSIAN = np.linspace(-12.0, 12.0, 201)
"""Nodes of the integrals of Cole and Hopf, by the trapezoidal rule, whose error falls exponentially with their number
here: twice as many give the same to 2e-15. Terms beyond are below exp(50 - 144), beside one of exp(-50) or more."""

Coefficients = np.ndarray
"""Of exp(i pi k x), k = 0 ... K - 1, of a real function of period 2; those of -k are the conjugates."""


def burgers(x: np.ndarray, t: np.ndarray, viscosity: float) -> np.ndarray:
    """The solution [len(t), len(x)] of u_t + u u_x = viscosity u_xx from u(x, 0) = -sin(pi x), of period 2.

    u is the mean of -sin(pi y) over y = x - 2 sqrt(viscosity t) z, weighed by exp(-z^2 - cos(pi y) / (2 pi viscosity)):
    the logarithmic derivative of a solution of the heat equation (Basdevant et al. 1986, "Spectral and Finite
    Difference Solutions of the Burgers Equation").

    Args:
        x: places [n].
        t: times [m], of at least 0.
        viscosity: at least about 0.002, for which the nodes are close enough.
    """
    found = []
    for time in t:
        y = x[:, None] - 2 * np.sqrt(viscosity * time) * GAUSSIAN
        exponents = -np.cos(np.pi * y) / (2 * np.pi * viscosity) - GAUSSIAN**2
        weights = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        found.append(-(weights * np.sin(np.pi * y)).sum(axis=1) / weights.sum(axis=1))
    return np.array(found)


@functools.cache
def allen_cahn() -> Coefficients:
    """The solution of u_t = 0.0001 u_xx + 5 u - 5 u^3, u(x, 0) = x^2 cos(pi x): [INTERVALS + 1, 1024].

    The start has a kink at x = -1 and 1, so that its coefficients fall as 1 / k^2 only; they are exact. Diffusion takes
    those that are left out: from t = 0.01 on what is missing is 1e-10.
    """
    k = np.arange(1024)

    def change(v: Coefficients) -> Coefficients:
        u = _values(v, 4 * len(v))
        return _coefficients(5 * u - 5 * u**3, len(v))

    return _series(kinked_start(k), -1e-4 * (np.pi * k) ** 2, change, steps=5)


def kinked_start(k: np.ndarray) -> Coefficients:
    """The coefficients of x^2 cos(pi x) on -1 <= x <= 1."""

    def integral(m: np.ndarray) -> np.ndarray:
        """Of x^2 cos(m pi x) over -1 <= x <= 1."""
        return np.where(m == 0, 2 / 3, 4 * (-1.0) ** m / np.where(m == 0, 1, m * np.pi) ** 2)

    return (integral(np.abs(k - 1)) + integral(k + 1)) / 4 + 0j


@functools.cache
def korteweg_de_vries() -> Coefficients:
    """The solution of u_t + u u_x + 0.0025 u_xxx = 0, u(x, 0) = cos(pi x): [INTERVALS + 1, 96]."""
    k = np.pi * np.arange(96)
    start = np.zeros(96, dtype=complex)
    start[1] = 0.5

    def change(v: Coefficients) -> Coefficients:
        return -0.5j * k * _coefficients(_values(v, 3 * len(v)) ** 2, len(v))

    return _series(start, 0.0025j * k**3, change, steps=50)


def on_grid(series: Coefficients, x: np.ndarray) -> np.ndarray:
    """The function [n, len(x)] of each of n rows of coefficients [n, K]."""
    waves = np.exp(1j * np.pi * np.outer(np.arange(series.shape[1]), x))
    waves[1:] *= 2
    return np.real(series @ waves)


def _values(v: Coefficients, points: int) -> np.ndarray:
    return np.fft.irfft(v, points, norm="forward")


def _coefficients(u: np.ndarray, count: int) -> Coefficients:
    return np.fft.rfft(u, norm="forward")[:count]


def _series(v: Coefficients, linear: np.ndarray, change: Callable[..., Coefficients], steps: int) -> Coefficients:
    """The solution of v' = linear v + change(v) at the start and after each interval, of so many steps: [n, K]."""
    h = INTERVAL / steps
    whole, half = np.exp(h * linear), np.exp(h * linear / 2)
    of_half, first, second, third = (h * weight for weight in _weights(h * linear))
    found = [v]
    for _ in range(INTERVALS):
        for _ in range(steps):
            at_v = change(v)
            a = half * v + of_half * at_v
            at_a = change(a)
            at_b = change(half * v + of_half * at_a)
            at_c = change(half * a + of_half * (2 * at_b - at_v))
            v = whole * v + first * at_v + second * (at_a + at_b) + third * at_c
        found.append(v)
    return np.array(found)


def _weights(z: np.ndarray) -> list[np.ndarray]:
    """What the scheme multiplies the four changes by; each has no pole at 0, and is the mean of its values around z."""
    z = z[:, None] + np.exp(2j * np.pi * (np.arange(AROUND_ZERO) + 0.5) / AROUND_ZERO)
    e = np.exp(z)
    terms = (
        (np.exp(z / 2) - 1) / z,
        (-4 - z + e * (4 - 3 * z + z**2)) / z**3,
        2 * (2 + z + e * (z - 2)) / z**3,
        (-4 - 3 * z - z**2 + e * (4 - z)) / z**3,
    )
    return [term.mean(axis=1) for term in terms]
