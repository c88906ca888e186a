"""The 35 unconstrained problems of Moré, Garbow and Hillstrom (1981), with their starts and published minima.

ACM Transactions on Mathematical Software 7, 17-41: F(x) = sum_i f_i(x)^2. Where the number of unknowns or residuals is
free, those are taken for which a minimum is printed; else ten unknowns, and a hundred of the two extended problems.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A sum of squares.

    Attributes:
        residuals: x [n] -> f [m].
        start: the standard one [n].
        minima: published local minima of F, as they are printed; "0" is exact, and so are closed forms, as floats.
    """

    residuals: Callable[[Tensor], Tensor]
    start: tuple[float, ...]
    minima: tuple[str | float, ...]

    def squares(self, x: Tensor) -> Tensor:
        """F at x."""
        return self.residuals(x).square().sum()

    def reached(self, value: float) -> str | float | None:
        """The published minimum that a value agrees with in all that is known of it; None for none.

        Digits may have been rounded or cut off, so that a unit of the last one is left.
        """
        for minimum in self.minima:
            known = float(minimum)
            if known == 0:
                near = 1e-10
            elif not isinstance(minimum, str):
                near = 1e-10 * known
            else:
                digits, _, exponent = minimum.partition("e")
                near = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
            if abs(value - known) <= near:
                return minimum
        return None


def _numbers(text: str) -> Tensor:
    return torch.tensor([float(each) for each in text.split()], dtype=torch.float64)


def _counted(n: int) -> Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64)


def _rosenbrock(x):
    return torch.cat([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def _freudenstein_roth(x):
    a, b = x
    return torch.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def _powell_badly_scaled(x):
    return torch.stack([1e4 * x[0] * x[1] - 1, (-x).exp().sum() - 1.0001])


def _brown_badly_scaled(x):
    return torch.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def _beale(x):
    return _numbers("1.5 2.25 2.625") - x[0] * (1 - x[1] ** _counted(3))


def _jennrich_sampson(x):
    i = _counted(10)
    return 2 + 2 * i - ((i * x[0]).exp() + (i * x[1]).exp())


def _helical_valley(x):
    turn = torch.atan(x[1] / x[0]) / (2 * math.pi) + (0.5 if x[0] < 0 else 0.0)
    return torch.stack([10 * (x[2] - 10 * turn), 10 * (x[:2].norm() - 1), x[2]])


BARD = _numbers("0.14 0.18 0.22 0.25 0.29 0.32 0.35 0.39 0.37 0.58 0.73 0.96 1.34 2.10 4.39")


def _bard(x):
    u = _counted(15)
    v, w = 16 - u, torch.minimum(u, 16 - u)
    return BARD - (x[0] + u / (v * x[1] + w * x[2]))


GAUSSIAN = _numbers(
    "0.0009 0.0044 0.0175 0.0540 0.1295 0.2420 0.3521 0.3989 0.3521 0.2420 0.1295 0.0540 0.0175 0.0044 0.0009"
)


def _gaussian(x):
    t = (8 - _counted(15)) / 2
    return x[0] * (-x[1] * (t - x[2]) ** 2 / 2).exp() - GAUSSIAN


MEYER = _numbers("34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872")


def _meyer(x):
    return x[0] * (x[1] / (45 + 5 * _counted(16) + x[2])).exp() - MEYER


def _gulf(x):
    """With the difference y_i - x_2, where a letter and an index are printed for the minus (m = 99)."""
    t = _counted(99) / 100
    y = 25 + (-50 * t.log()) ** (2 / 3)
    return (-((y - x[1]).abs() ** x[2]) / x[0]).exp() - t


def _box(x):
    t = _counted(10) / 10
    return (-t * x[0]).exp() - (-t * x[1]).exp() - x[2] * ((-t).exp() - (-10 * t).exp())


def _powell_singular(x):
    a, b, c, d = x.view(-1, 4).unbind(1)
    return torch.cat([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


def _wood(x):
    a, b, c, d = x
    first = [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c]
    return torch.stack([*first, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])


KOWALIK = _numbers("0.1957 0.1947 0.1735 0.1600 0.0844 0.0627 0.0456 0.0342 0.0323 0.0235 0.0246")


def _kowalik_osborne(x):
    u = _numbers("4 2 1 0.5 0.25 0.167 0.125 0.1 0.0833 0.0714 0.0625")
    return KOWALIK - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def _brown_dennis(x):
    t = _counted(20) / 5
    return (x[0] + t * x[1] - t.exp()) ** 2 + (x[2] + x[3] * t.sin() - t.cos()) ** 2


OSBORNE_1 = _numbers(
    "0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.850 0.818 0.784 0.751 0.718 0.685 0.658 0.628 0.603 0.580 0.558 0.538 "
    "0.522 0.506 0.490 0.478 0.467 0.457 0.448 0.438 0.431 0.424 0.420 0.414 0.411 0.406"
)


def _osborne_1(x):
    t = 10 * (_counted(33) - 1)
    return OSBORNE_1 - (x[0] + x[1] * (-t * x[3]).exp() + x[2] * (-t * x[4]).exp())


def _biggs(x):
    t = _counted(13) / 10
    y = (-t).exp() - 5 * (-10 * t).exp() + 3 * (-4 * t).exp()
    return x[2] * (-t * x[0]).exp() - x[3] * (-t * x[1]).exp() + x[5] * (-t * x[4]).exp() - y


OSBORNE_2 = _numbers(
    "1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608 0.655 0.616 0.606 0.602 0.626 0.651 "
    "0.724 0.649 0.649 0.694 0.644 0.624 0.661 0.612 0.558 0.533 0.495 0.500 0.423 0.395 0.375 0.372 0.391 0.396 0.405 "
    "0.428 0.429 0.523 0.562 0.607 0.653 0.672 0.708 0.633 0.668 0.645 0.632 0.591 0.559 0.597 0.625 0.739 0.710 0.729 "
    "0.720 0.636 0.581 0.428 0.292 0.162 0.098 0.054"
)


def _osborne_2(x):
    t = (_counted(65) - 1) / 10
    peaks = sum(x[k] * (-((t - x[k + 7]) ** 2) * x[k + 4]).exp() for k in (1, 2, 3))
    return OSBORNE_2 - (x[0] * (-t * x[4]).exp() + peaks)


def _watson(x):
    j = _counted(len(x)) - 1
    t = _counted(29)[:, None] / 29
    slope = (j[1:] * t ** (j[1:] - 1)) @ x[1:]
    return torch.cat([slope - (t**j @ x) ** 2 - 1, x[:1], (x[1] - x[0] ** 2 - 1)[None]])


def _penalty_1(x):
    return torch.cat([1e-5**0.5 * (x - 1), (x.square().sum() - 0.25)[None]])


def _penalty_2(x):
    n, i = len(x), _counted(len(x))[1:]
    grown, y = (x / 10).exp(), (i / 10).exp() + ((i - 1) / 10).exp()
    inner = torch.cat([grown[1:] + grown[:-1] - y, grown[1:] - math.exp(-0.1)])
    last = (n - _counted(n) + 1) @ x.square() - 1
    return torch.cat([(x[0] - 0.2)[None], 1e-5**0.5 * inner, last[None]])


def _variably_dimensioned(x):
    total = _counted(len(x)) @ (x - 1)
    return torch.cat([x - 1, total[None], total[None] ** 2])


def _trigonometric(x):
    return len(x) - x.cos().sum() + _counted(len(x)) * (1 - x.cos()) - x.sin()


def _brown_almost_linear(x):
    return torch.cat([x[:-1] + x.sum() - (len(x) + 1), (x.prod() - 1)[None]])


def _neighbours(x):
    """Each unknown's left and right one, 0 beyond the ends."""
    zero = x.new_zeros(1)
    return torch.cat([zero, x[:-1]]), torch.cat([x[1:], zero])


def _discrete_boundary(x):
    h, (left, right) = 1 / (len(x) + 1), _neighbours(x)
    return 2 * x - left - right + h**2 * (x + h * _counted(len(x)) + 1) ** 3 / 2


def _discrete_integral(x):
    h = 1 / (len(x) + 1)
    t = h * _counted(len(x))
    kernel = torch.where(t <= t[:, None], t * (1 - t[:, None]), t[:, None] * (1 - t))
    return x + h / 2 * kernel @ (x + t + 1) ** 3


def _broyden_tridiagonal(x):
    left, right = _neighbours(x)
    return (3 - 2 * x) * x - left - 2 * right + 1


def _broyden_banded(x):
    i = _counted(len(x))
    apart = i - i[:, None]
    band = ((apart >= -5) & (apart <= 1) & (apart != 0)).to(x)
    return x * (2 + 5 * x**2) + 1 - band @ (x * (1 + x))


def _linear(x):
    """Of full rank, with twice as many residuals."""
    return torch.cat([x, torch.zeros_like(x)]) - x.sum() / len(x) - 1


def _linear_rank_1(x):
    return _counted(2 * len(x)) * (_counted(len(x)) @ x) - 1


def _linear_rank_1_with_zeros(x):
    m, j = 2 * len(x), _counted(len(x))
    i = _counted(m)
    inner = ((i > 1) & (i < m)).to(x)
    return inner * (i - 1) * (j[1:-1] @ x[1:-1]) - 1


def _chebyquad(x):
    n, before, here = len(x), torch.ones_like(x), 2 * x - 1
    found, slope = [], 4 * x - 2
    for i in range(1, n + 1):
        found.append(here.mean() + (1 / (i**2 - 1) if i % 2 == 0 else 0.0))
        before, here = here, slope * here - before
    return torch.stack(found)


def _even(n: int) -> tuple[float, ...]:
    return tuple((_counted(n) / (n + 1)).tolist())


_BETWEEN = tuple(t * (t - 1) for t in _even(10))

PROBLEMS = {
    "Rosenbrock": Problem(_rosenbrock, (-1.2, 1.0), ("0",)),
    "Freudenstein and Roth": Problem(_freudenstein_roth, (0.5, -2.0), ("0", "48.9842")),
    "Powell, badly scaled": Problem(_powell_badly_scaled, (0.0, 1.0), ("0",)),
    "Brown, badly scaled": Problem(_brown_badly_scaled, (1.0, 1.0), ("0",)),
    "Beale": Problem(_beale, (1.0, 1.0), ("0",)),
    "Jennrich and Sampson": Problem(_jennrich_sampson, (0.3, 0.4), ("124.362",)),
    "helical valley": Problem(_helical_valley, (-1.0, 0.0, 0.0), ("0",)),
    "Bard": Problem(_bard, (1.0, 1.0, 1.0), ("8.21487e-3", "17.4286")),
    "Gaussian": Problem(_gaussian, (0.4, 1.0, 0.0), ("1.12793e-8",)),
    "Meyer": Problem(_meyer, (0.02, 4000.0, 250.0), ("87.9458",)),
    "Gulf": Problem(_gulf, (5.0, 2.5, 0.15), ("0",)),
    "Box": Problem(_box, (0.0, 10.0, 20.0), ("0",)),
    "Powell, singular": Problem(_powell_singular, (3.0, -1.0, 0.0, 1.0), ("0",)),
    "Wood": Problem(_wood, (-3.0, -1.0, -3.0, -1.0), ("0",)),
    "Kowalik and Osborne": Problem(_kowalik_osborne, (0.25, 0.39, 0.415, 0.39), ("3.07505e-4", "1.02734e-3")),
    "Brown and Dennis": Problem(_brown_dennis, (25.0, 5.0, -5.0, -1.0), ("85822.2",)),
    "Osborne 1": Problem(_osborne_1, (0.5, 1.5, -1.0, 0.01, 0.02), ("5.46489e-5",)),
    "Biggs EXP6": Problem(_biggs, (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), ("0", "5.65565e-3")),
    "Osborne 2": Problem(_osborne_2, (1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5), ("4.01377e-2",)),
    "Watson 6": Problem(_watson, (0.0,) * 6, ("2.28767e-3",)),
    "Watson 9": Problem(_watson, (0.0,) * 9, ("1.39976e-6",)),
    "Watson 12": Problem(_watson, (0.0,) * 12, ("4.72238e-10",)),
    "Rosenbrock 100": Problem(_rosenbrock, (-1.2, 1.0) * 50, ("0",)),
    "Powell, singular 100": Problem(_powell_singular, (3.0, -1.0, 0.0, 1.0) * 25, ("0",)),
    "penalty I 4": Problem(_penalty_1, tuple(_counted(4).tolist()), ("2.24997e-5",)),
    "penalty I 10": Problem(_penalty_1, tuple(_counted(10).tolist()), ("7.08765e-5",)),
    "penalty II 4": Problem(_penalty_2, (0.5,) * 4, ("9.37629e-6",)),
    "penalty II 10": Problem(_penalty_2, (0.5,) * 10, ("2.93660e-4",)),
    "variably dimensioned": Problem(_variably_dimensioned, tuple((1 - _counted(10) / 10).tolist()), ("0",)),
    "trigonometric 9": Problem(_trigonometric, (1 / 9,) * 9, ("0",)),
    "trigonometric 10": Problem(_trigonometric, (0.1,) * 10, ("0",)),
    "Brown, almost linear": Problem(_brown_almost_linear, (0.5,) * 10, ("0", 1.0)),
    "discrete boundary value": Problem(_discrete_boundary, _BETWEEN, ("0",)),
    "discrete integral equation": Problem(_discrete_integral, _BETWEEN, ("0",)),
    "Broyden, tridiagonal": Problem(_broyden_tridiagonal, (-1.0,) * 10, ("0",)),
    "Broyden, banded": Problem(_broyden_banded, (-1.0,) * 10, ("0",)),
    "linear": Problem(_linear, (1.0,) * 10, (10.0,)),
    "linear, rank 1": Problem(_linear_rank_1, (1.0,) * 10, (20 * 19 / (2 * 41),)),
    "linear, rank 1 with zeros": Problem(_linear_rank_1_with_zeros, (1.0,) * 10, ((400 + 60 - 6) / (2 * 37),)),
    "Chebyquad 7": Problem(_chebyquad, _even(7), ("0",)),
    "Chebyquad 8": Problem(_chebyquad, _even(8), ("3.51687e-3",)),
    "Chebyquad 9": Problem(_chebyquad, _even(9), ("0",)),
    "Chebyquad 10": Problem(_chebyquad, _even(10), ("6.50395e-3",)),
}
