"""Quantiles of Student's t distribution."""

import functools
import math
from statistics import NormalDist

import numpy as np

LARGE = 10_000
"""Degrees of freedom from which on the normal distribution's quantile is expanded: what is left out is below 1e-15."""
_EXPANSION = (
    (4, (1, 1)),
    (96, (3, 16, 5)),
    (384, (-15, 17, 19, 3)),
    (92_160, (-945, -1920, 1482, 776, 79)),
)
"""Of each power of 1 / freedom: the divisor, and the coefficients of x, x^3, ..."""


@functools.cache
def student_quantile(freedom: int, p: float) -> float:
    """The number below which Student's t stays with probability p.

    Abramowitz and Stegun 1964, "Handbook of Mathematical Functions": 26.7.3 and 26.7.4, by which the distribution
    function of whole degrees of freedom is a finite sum in the angle atan(t / sqrt(freedom)), whose zero bisection
    finds; for many degrees the expansion 26.7.5.

    Args:
        freedom: degrees of freedom, a whole number >= 1.
        p: above 0, below 1.
    """
    if freedom >= LARGE:
        x = NormalDist().inv_cdf(p)
        series = (
            sum(c * x ** (2 * i + 1) for i, c in enumerate(coefficients)) / divisor / freedom**power
            for power, (divisor, coefficients) in enumerate(_EXPANSION, start=1)
        )
        return x + sum(series)
    low, high = -math.pi / 2, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _within(middle, freedom) < 2 * p - 1:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(middle)


def _within(angle: float, freedom: int) -> float:
    """The probability that |t| < sqrt(freedom) tan(angle), negative for a negative angle."""
    odd = freedom % 2
    below = np.arange(2 + odd, freedom - 1, 2)  # the last factor of each denominator
    terms = np.cumprod((below - 1) / below * math.cos(angle) ** 2)
    series = math.sin(angle) * (1.0 + float(terms.sum()))
    if not odd:
        return series
    return 2 / math.pi * (angle + (series * math.cos(angle) if freedom > 1 else 0.0))
